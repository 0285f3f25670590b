"""Wavefront OBJ with its MTL and PNG textures, for tools that do not read glTF.

Positions are welded along the seams of the atlas, so the mesh arrives as one closed surface. The MTL carries
the PBR keys of the format's later extension (Pr, Pm, map_Pr, norm) beside the classic ones.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from reconstruction.model import Material, TexturedModel


def write_obj(model: TexturedModel, folder: Path, stem: str = "model") -> None:
    """Write `stem`.obj, `stem`.mtl and the textures `stem`_basecolor.png and so on into `folder`."""
    mesh = model.mesh
    vertices, normals, faces = mesh.welded()
    unit = model.provenance.get("unit", "unknown")
    lines = [f"# {model.name}, unit: {unit}", f"mtllib {stem}.mtl", f"o {model.name}"]
    lines += _rows("v", vertices)
    lines += _rows("vt", mesh.uv * (1, -1) + (0, 1))  # OBJ counts v from the bottom of the image
    lines += _rows("vn", normals)
    lines += [f"usemtl {model.name}"]
    # OBJ counts from 1.
    lines += [
        f"f {a}/{u}/{a} {b}/{v}/{b} {c}/{w}/{c}"
        for (a, b, c), (u, v, w) in zip((faces + 1).tolist(), (mesh.faces + 1).tolist(), strict=True)
    ]
    (folder / f"{stem}.obj").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"{stem}.mtl").write_text(
        "\n".join(_material(model.name, model.material, folder, stem)) + "\n", encoding="utf-8"
    )


def _rows(key: str, values: npt.NDArray[np.floating]) -> list[str]:
    return [" ".join([key, *(f"{x:.7g}" for x in row)]) for row in values.tolist()]


def _material(name: str, material: Material, folder: Path, stem: str) -> list[str]:
    """Write the textures and return the lines of the MTL."""
    lines = [f"newmtl {name}", "Kd 1 1 1", "Ks 0 0 0", "illum 1", f"map_Kd {stem}_basecolor.png"]
    Image.fromarray(material.base_color).save(folder / f"{stem}_basecolor.png")
    if material.metallic_roughness is None:
        lines += [f"Pr {material.roughness:g}", "Pm 0"]
    else:
        lines += ["Pr 1", f"map_Pr {stem}_roughness.png", "Pm 1", f"map_Pm {stem}_metallic.png"]
        Image.fromarray(material.metallic_roughness[..., 1]).save(folder / f"{stem}_roughness.png")
        Image.fromarray(material.metallic_roughness[..., 2]).save(folder / f"{stem}_metallic.png")
    if material.normal is not None:
        lines += [f"norm {stem}_normal.png", f"map_Bump {stem}_normal.png"]
        Image.fromarray(material.normal).save(folder / f"{stem}_normal.png")
    return lines
