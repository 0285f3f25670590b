"""GLB, the binary glTF 2.0 that viewers open: one mesh, one PBR material, provenance in `asset.extras`."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.gltf import export_glb
from trimesh.visual.material import PBRMaterial

from reconstruction.atlas import UvMesh, vertex_tangents
from reconstruction.draco import DRACO
from reconstruction.model import Material, TexturedModel
from scan2twin import __version__
from scan2twin.errors import InputError

# glTF 2.0 §5.26 and §5.27, values of OpenGL: trilinear, and no repeat, since an atlas has no neighbour to wrap to.
SAMPLER = {"magFilter": 9729, "minFilter": 9987, "wrapS": 33071, "wrapT": 33071}

# glTF 2.0 §5.11.5: what a buffer view is used for, which lets viewers upload it as it is.
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963

Encoding = Literal["png", "jpeg", "webp"]  # of textures; the last two lose a little
Compression = Literal["none", "draco"]  # of the mesh; draco moves vertices by a little
QUALITY = 90  # of JPEG and WebP: no artefacts that an eye finds


def write_glb(model: TexturedModel, path: Path, textures: Encoding = "png", compression: Compression = "none") -> None:
    """Write `model` as a GLB that the Khronos validator passes.

    WebP textures need the extension EXT_texture_webp, a Draco mesh KHR_draco_mesh_compression. The latter leaves out
    tangents, which viewers then derive from the UVs (glTF 2.0 §3.7.2.1): nothing would quantise them, and they would
    outweigh all the rest.
    """
    mesh, maps = model.mesh, model.material
    material = PBRMaterial(
        name=model.name,
        baseColorTexture=_image(maps.base_color, textures),
        metallicRoughnessTexture=_image(maps.metallic_roughness, textures),
        normalTexture=_image(maps.normal, textures),
        metallicFactor=0.0 if maps.metallic_roughness is None else 1.0,
        roughnessFactor=maps.roughness if maps.metallic_roughness is None else 1.0,
    )
    # trimesh counts v from the bottom of the image and turns it round when it writes glTF.
    visual = trimesh.visual.TextureVisuals(uv=mesh.uv * (1, -1) + (0, 1), material=material)
    geometry = trimesh.Trimesh(
        mesh.vertices, mesh.faces, vertex_normals=mesh.normals, visual=visual, process=False, validate=False
    )
    if maps.normal is not None and compression == "none":
        geometry.vertex_attributes["_TANGENT"] = vertex_tangents(mesh)
    scene = trimesh.Scene()
    scene.add_geometry(geometry, geom_name=model.name, node_name=model.name)

    def finish(tree: dict[str, Any]) -> None:
        tree["asset"] = {
            "version": "2.0",
            "generator": f"scan2twin {__version__}",
            "extras": dict(model.provenance),
        }
        (primitive,) = tree["meshes"][0]["primitives"]
        attributes = primitive["attributes"]
        if "_TANGENT" in attributes:  # trimesh writes only attributes of the application's own, marked so
            attributes["TANGENT"] = attributes.pop("_TANGENT")
        for accessors, target in ((attributes.values(), ARRAY_BUFFER), ([primitive["indices"]], ELEMENT_ARRAY_BUFFER)):
            for accessor in accessors if DRACO not in primitive.get("extensions", {}) else ():
                tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = target
        if maps.occluded:
            (written,) = tree["materials"]
            packed = written["pbrMetallicRoughness"]["metallicRoughnessTexture"]
            written["occlusionTexture"] = {"index": packed["index"]}
        tree["samplers"] = [SAMPLER]
        for texture in tree["textures"]:
            texture["sampler"] = 0

    data = export_glb(
        scene,
        include_normals=True,
        unitize_normals=True,
        tree_postprocessor=finish,
        extension_webp=textures == "webp",
        extension_draco=compression == "draco",
    )
    path.write_bytes(data)


def read_glb(path: Path) -> tuple[UvMesh, Material]:
    """Read a GLB that `write_glb` wrote; `source` of the mesh numbers the distinct positions.

    Raises:
        InputError: the file is missing, is not a GLB, or does not hold exactly one textured mesh.

    """
    try:
        scene = trimesh.load_scene(path, file_type="glb", process=False)
        (geometry,) = scene.geometry.values()
        material = geometry.visual.material
        base_color = np.array(material.baseColorTexture.convert("RGB"))
    except Exception as error:
        # trimesh lets whatever a damaged file provokes (struct, JSON, PIL, key errors) through.
        reason = str(error) or type(error).__name__
        raise InputError(f"{path}: not a GLB with one textured mesh ({reason}); make the model again") from error
    vertices = np.array(geometry.vertices, np.float32)
    mesh = UvMesh(
        vertices=vertices,
        normals=np.array(geometry.vertex_normals, np.float32),
        uv=(np.asarray(geometry.visual.uv) * (1, -1) + (0, 1)).astype(np.float32),
        faces=np.array(geometry.faces, np.int32),
        source=np.unique(vertices, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int32),
    )
    packed, normal = material.metallicRoughnessTexture, material.normalTexture
    return mesh, Material(
        base_color=base_color,
        metallic_roughness=None if packed is None else np.array(packed.convert("RGB")),
        normal=None if normal is None else np.array(normal.convert("RGB")),
        occluded=material.occlusionTexture is not None,
        roughness=float(material.roughnessFactor),
    )


def _image(texture: Any, encoding: Encoding) -> Image.Image | None:
    """Return a texture as trimesh takes it: it writes the format that the image says, with the options it carries."""
    if texture is None:
        return None
    image = Image.fromarray(texture)
    if encoding != "png":
        image.format = encoding.upper()
        image.encoderinfo = {"quality": QUALITY, "subsampling": 0}  # packed channels are no colours
    return image
