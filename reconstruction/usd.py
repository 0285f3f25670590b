"""USDZ, which iPhones and iPads open in AR Quick Look, and USD tools open too.

A USDZ is an uncompressed zip whose files begin at multiples of 64 bytes, the stage first (USDZ specification 1.3).
The material is a UsdPreviewSurface. Units are stated: metersPerUnit 1, +Y up.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pxr import Gf, Sdf, Usd, UsdGeom, UsdShade, Vt

from reconstruction.model import Material, TexturedModel

# Dates inside the zip would make two runs differ. A zip's dates begin in 1980, in local time: a day later is safe.
ZIP_EPOCH_S = 315_619_200  # 1980-01-02 UTC


def write_usdz(model: TexturedModel, path: Path) -> None:
    """Write `model` as a USDZ that the validators of OpenUSD and the rules of AR Quick Look pass.

    The caller keeps to what AR viewers take, at most about 100,000 triangles and 2048² textures: `lods.LEVELS`.
    """
    with tempfile.TemporaryDirectory(prefix="scan2twin-usd-", dir=path.parent) as temporary:
        folder = Path(temporary)
        stage_file = folder / "model.usdc"
        _write_stage(model, stage_file)
        package = Sdf.ZipFileWriter.CreateNew(str(folder / "model.usdz"))  # stores uncompressed, 64-byte aligned
        for file in (stage_file, *sorted(folder.glob("*.png"))):
            os.utime(file, (ZIP_EPOCH_S, ZIP_EPOCH_S))
            package.AddFile(str(file), file.name)
        if not package.Save():
            raise OSError(f"{path}: OpenUSD could not write the package; is the disk full?")
        (folder / "model.usdz").replace(path)


def _write_stage(model: TexturedModel, path: Path) -> None:
    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    root = UsdGeom.Xform.Define(stage, "/Model")
    Usd.ModelAPI(root).SetKind("component")
    root.GetPrim().SetDisplayName(model.name)
    stage.SetDefaultPrim(root.GetPrim())
    stage.GetRootLayer().customLayerData = {"scan2twin": _plain(model.provenance)}
    mesh = _define_mesh(stage, model)
    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(_define_material(stage, model.material, path.parent))
    stage.GetRootLayer().Save()


def _define_mesh(stage: Any, model: TexturedModel) -> Any:
    vertices, normals, faces = model.mesh.welded()
    mesh = UsdGeom.Mesh.Define(stage, "/Model/Mesh")
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(vertices)))
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(faces), 3, np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(faces.ravel()))
    mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(normals)))
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)  # else viewers round it off
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    mesh.CreateExtentAttr(Vt.Vec3fArray([Gf.Vec3f(*low.tolist()), Gf.Vec3f(*high.tolist())]))
    # USD counts v from the bottom of the image. UVs have their own indices, so positions stay welded along seams.
    uv = (model.mesh.uv * (1, -1) + (0, 1)).astype(np.float32)
    coordinates = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(
        "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
    )
    coordinates.Set(Vt.Vec2fArray.FromNumpy(uv))
    coordinates.SetIndices(Vt.IntArray.FromNumpy(model.mesh.faces.ravel()))
    return mesh


def _define_material(stage: Any, material: Material, folder: Path) -> Any:
    """Define the material and write its textures beside the stage; returns the UsdShade.Material."""
    shade = UsdShade.Material.Define(stage, "/Model/Material")
    surface = UsdShade.Shader.Define(stage, "/Model/Material/Surface")
    surface.CreateIdAttr("UsdPreviewSurface")
    shade.CreateSurfaceOutput().ConnectToSource(surface.ConnectableAPI(), "surface")
    reader = UsdShade.Shader.Define(stage, "/Model/Material/Coordinates")
    reader.CreateIdAttr("UsdPrimvarReader_float2")
    reader.CreateInput("varname", Sdf.ValueTypeNames.String).Set("st")
    reader.CreateOutput("result", Sdf.ValueTypeNames.Float2)

    def texture(name: str, pixels: Any, color_space: str) -> Any:
        Image.fromarray(pixels).save(folder / f"{name}.png")
        shader = UsdShade.Shader.Define(stage, f"/Model/Material/{name}")
        shader.CreateIdAttr("UsdUVTexture")
        shader.CreateInput("file", Sdf.ValueTypeNames.Asset).Set(Sdf.AssetPath(f"{name}.png"))
        shader.CreateInput("sourceColorSpace", Sdf.ValueTypeNames.Token).Set(color_space)
        for axis in ("wrapS", "wrapT"):
            shader.CreateInput(axis, Sdf.ValueTypeNames.Token).Set("clamp")
        shader.CreateInput("st", Sdf.ValueTypeNames.Float2).ConnectToSource(reader.ConnectableAPI(), "result")
        return shader

    def connect(name: str, kind: Any, shader: Any, channel: str) -> None:
        output = shader.CreateOutput(channel, Sdf.ValueTypeNames.Float3 if channel == "rgb" else kind)
        surface.CreateInput(name, kind).ConnectToSource(output)

    connect("diffuseColor", Sdf.ValueTypeNames.Color3f, texture("BaseColor", material.base_color, "sRGB"), "rgb")
    if material.metallic_roughness is None:
        surface.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(float(material.roughness))
        surface.CreateInput("metallic", Sdf.ValueTypeNames.Float).Set(0.0)
    else:
        packed = texture("MetallicRoughness", material.metallic_roughness, "raw")
        connect("roughness", Sdf.ValueTypeNames.Float, packed, "g")
        connect("metallic", Sdf.ValueTypeNames.Float, packed, "b")
        if material.occluded:
            connect("occlusion", Sdf.ValueTypeNames.Float, packed, "r")
    if material.normal is not None:
        bumps = texture("Normal", material.normal, "raw")
        # 8 bits are unsigned: UsdPreviewSurface wants them brought to -1..1 (its specification, "Normal Map").
        bumps.CreateInput("scale", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(2, 2, 2, 1))
        bumps.CreateInput("bias", Sdf.ValueTypeNames.Float4).Set(Gf.Vec4f(-1, -1, -1, 0))
        connect("normal", Sdf.ValueTypeNames.Normal3f, bumps, "rgb")
    return shade


def _plain(value: Any) -> Any:
    """Turn plain JSON into what USD's dictionaries take: they have no null and no list of mixed kinds."""
    if isinstance(value, dict):
        return {str(key).replace(":", "_"): _plain(item) for key, item in value.items() if item is not None}
    return value if isinstance(value, (bool, int, float, str)) else str(value)
