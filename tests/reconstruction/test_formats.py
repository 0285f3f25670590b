"""USDZ, PLY, levels of detail, origins and axes: each file opened again by a reader that is not ours."""

import io
import json
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from pxr import Sdf, Usd, UsdGeom, UsdShade, UsdValidation

from reconstruction.atlas import unwrap, vertex_tangents
from reconstruction.bake import bake, dilate, to_8bit
from reconstruction.export import place
from reconstruction.formats import write_formats, z_up
from reconstruction.gltf import read_glb, write_glb
from reconstruction.lods import Level, level_of_detail, sample, shrink
from reconstruction.measure import psnr
from reconstruction.model import Material, Origin, TexturedModel
from reconstruction.ply import write_ply
from reconstruction.preview import camera_rotation
from reconstruction.render import Renderer, View, to_rgba8
from reconstruction.usd import write_usdz
from scan2twin.capture.models import Intrinsics
from scan2twin.config import ExportConfig

VALIDATOR = Path(__file__).parents[1] / "node_modules" / "gltf-validator"
VALIDATE = """
const fs = require("fs"), validator = require(process.argv[1]);
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))
  .then(report => console.log(JSON.stringify(report)));
"""
SIZE = 256


def stripes(points: torch.Tensor) -> torch.Tensor:
    """Colours (N, 3) in [0, 1] that tell where on the egg a point is."""
    return 0.5 + 0.4 * torch.sin(points * torch.tensor([25.0, 20.0, 30.0]))


@pytest.fixture(scope="module")
def egg() -> TexturedModel:
    """An upright egg of 0.3 × 0.5 × 0.25 m on the origin, of 5,120 triangles, its colours known in space."""
    ball = trimesh.creation.icosphere(subdivisions=4)
    vertices = (ball.vertices * (0.15, 0.25, 0.125) + (0, 0.25, 0)).astype(np.float32)
    mesh = unwrap(vertices, ball.faces.astype(np.int32), SIZE)
    base_color = to_8bit(dilate(*bake(mesh, stripes, SIZE))).numpy()
    packed = np.full_like(base_color, 255)
    packed[..., 1], packed[..., 2] = 120, base_color[..., 0]
    bumps = np.full_like(base_color, 128)
    bumps[..., 2] = 255
    return TexturedModel(
        mesh,
        Material(base_color, packed, bumps, occluded=True),
        "egg",
        {"capture_id": "egg", "fingerprints": {"mask": "ab"}},
    )


def picture(model: TexturedModel, azimuth: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    camera_to_world = np.eye(4)
    camera_to_world[:3, :3] = camera_rotation(azimuth, 0.3)
    camera_to_world[:3, 3] = (0, 0.25, 0) + 1.5 * camera_to_world[:3, 2]
    view = View("", camera_to_world, Intrinsics(fx=450, fy=450, cx=100, cy=100), 200, 200)
    return to_rgba8(Renderer(model.mesh, model.material).draw(view)).astype(float) / 255


def likeness(a: TexturedModel, b: TexturedModel) -> float:
    """PSNR in dB between pictures of two models from two sides."""
    return min(psnr(float(np.square(picture(a, side) - picture(b, side)).mean())) for side in (0.4, 3.0))


def test_a_decimated_level_looks_like_the_full_model(egg: TexturedModel) -> None:
    small = level_of_detail(egg, Level(1200, SIZE))
    assert 1000 < len(small.mesh.faces) <= 1200
    assert likeness(egg, small) > 30
    # The same decimation without the transfer, the old texture over new coordinates, is far off.
    assert likeness(egg, replace(small, material=egg.material)) < 20


def test_a_decimated_level_has_the_colours_of_the_place(egg: TexturedModel) -> None:
    small = level_of_detail(egg, Level(1200, SIZE))
    middles = small.mesh.vertices[small.mesh.faces].mean(axis=1)
    uv = small.mesh.uv[small.mesh.faces].mean(axis=1)
    expected = stripes(torch.from_numpy(middles)).numpy()
    assert np.abs(sample(small.material.base_color, uv) - expected).mean() < 0.02
    assert small.material.metallic_roughness is not None
    packed = sample(small.material.metallic_roughness, uv)
    assert packed[:, 1] == pytest.approx(120 / 255, abs=0.01)
    assert np.abs(packed[:, 2] - expected[:, 0]).mean() < 0.02


def test_the_normal_map_carries_the_shape_that_decimation_took(egg: TexturedModel) -> None:
    """The full model's normals, seen through the level's own tangent frame, are those of the ellipsoid."""
    small = level_of_detail(egg, Level(300, SIZE))
    mesh = small.mesh
    assert small.material.normal is not None
    at = mesh.faces[:, :1]  # look at one corner of each face: there tangent and normal are the vertex's own
    uv = 0.9 * mesh.uv[at[:, 0]] + 0.1 * mesh.uv[mesh.faces].mean(axis=1)
    point = 0.9 * mesh.vertices[at[:, 0]] + 0.1 * mesh.vertices[mesh.faces].mean(axis=1)
    bump = sample(small.material.normal, uv) * 2 - 1
    tangent = vertex_tangents(mesh)[at[:, 0]]
    normal = mesh.normals[at[:, 0]]
    bitangent = np.cross(normal, tangent[:, :3]) * tangent[:, 3:]
    world = bump[:, :1] * tangent[:, :3] + bump[:, 1:2] * bitangent + bump[:, 2:] * normal
    true = (point - (0, 0.25, 0)) / np.square((0.15, 0.25, 0.125))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    with_map = np.degrees(np.arccos(np.clip((world * true).sum(axis=1), -1, 1)))
    without = np.degrees(np.arccos(np.clip((normal * true).sum(axis=1), -1, 1)))
    assert np.median(with_map) < 0.7 * np.median(without)


def test_a_model_within_the_limits_keeps_its_mesh(egg: TexturedModel) -> None:
    level = level_of_detail(egg, Level(10**6, 64))
    assert level.mesh is egg.mesh
    assert level.material.base_color.shape == (64, 64, 3)
    assert level.material.base_color.mean() == pytest.approx(egg.material.base_color.mean(), abs=1)
    assert shrink(egg.material, 4096).base_color is egg.material.base_color


def test_a_level_is_closed_and_as_big_as_the_model(egg: TexturedModel) -> None:
    vertices, _, faces = level_of_detail(egg, Level(1200, SIZE)).mesh.welded()
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    assert mesh.extents == pytest.approx([0.3, 0.5, 0.25], rel=0.02)


@pytest.mark.skipif(
    shutil.which("node") is None or not VALIDATOR.exists(),
    reason="the Khronos validator needs node and `npm ci --prefix tests`",
)
@pytest.mark.parametrize("textures", ["jpeg", "webp"])
def test_compressed_textures_are_valid_and_close(egg: TexturedModel, tmp_path: Path, textures: str) -> None:
    write_glb(egg, tmp_path / "egg.glb", textures=textures)  # type: ignore[arg-type]
    done = subprocess.run(
        ["node", "-e", VALIDATE, str(VALIDATOR), str(tmp_path / "egg.glb")], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert (report["issues"]["numErrors"], report["issues"]["numWarnings"]) == (0, 0), report["issues"]["messages"]
    assert [image["mimeType"] for image in report["info"]["resources"] if image["pointer"].startswith("/images")] == [
        f"image/{textures}"
    ] * 3
    material = read_glb(tmp_path / "egg.glb")[1]
    assert np.abs(material.base_color.astype(int) - egg.material.base_color).mean() < 3
    write_glb(egg, tmp_path / "png.glb")
    assert (tmp_path / "egg.glb").stat().st_size < (tmp_path / "png.glb").stat().st_size


def complaints(stage: Usd.Stage) -> list[str]:
    """What every validator that OpenUSD brings says of a stage: geometry, shading, package."""
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    found = UsdValidation.ValidationContext(validators).Validate(stage)
    return [f"{error.GetName()}: {error.GetMessage()}" for error in found]


def test_openusd_has_nothing_to_say_of_the_usdz(egg: TexturedModel, tmp_path: Path) -> None:
    write_usdz(egg, tmp_path / "egg.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "egg.usdz"))
    assert complaints(stage) == []
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    stage.GetRootLayer().ClearDefaultPrim()  # and it does say something when something is wrong
    assert complaints(stage) != []


def test_the_usdz_is_packed_as_ar_quick_look_wants_it(egg: TexturedModel, tmp_path: Path) -> None:
    write_usdz(egg, tmp_path / "egg.usdz")
    data = (tmp_path / "egg.usdz").read_bytes()
    with zipfile.ZipFile(tmp_path / "egg.usdz") as package:
        entries = package.infolist()
    assert entries[0].filename == "model.usdc"
    assert {Path(entry.filename).suffix for entry in entries[1:]} == {".png"}
    for entry in entries:
        assert entry.compress_type == zipfile.ZIP_STORED
        name, extra = (int.from_bytes(data[entry.header_offset + k :][:2], "little") for k in (26, 28))
        assert (entry.header_offset + 30 + name + extra) % 64 == 0, entry.filename
    write_usdz(egg, tmp_path / "again.usdz")
    assert (tmp_path / "again.usdz").read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.usdz", "egg.usdz"]


def test_the_usdz_holds_the_model(egg: TexturedModel, tmp_path: Path) -> None:
    write_usdz(egg, tmp_path / "egg.usdz")
    stage = Usd.Stage.Open(str(tmp_path / "egg.usdz"))
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert stage.GetRootLayer().customLayerData["scan2twin"]["capture_id"] == "egg"
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Model/Mesh"))
    points, faces = np.array(mesh.GetPointsAttr().Get()), np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    solid = trimesh.Trimesh(points, faces, process=False)
    assert solid.is_watertight
    assert solid.bounds == pytest.approx(np.array([[-0.15, 0, -0.125], [0.15, 0.5, 0.125]]), abs=1e-4)
    assert solid.volume == pytest.approx(4 / 3 * np.pi * 0.15 * 0.25 * 0.125, rel=0.01)
    # Look up the colour of each face as USD says: v from the bottom, one coordinate a corner.
    coordinates = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").ComputeFlattened()
    uv = np.array(coordinates).reshape(-1, 3, 2).mean(axis=1)
    material, _ = UsdShade.MaterialBindingAPI(mesh.GetPrim()).ComputeBoundMaterial()
    surface, _, _ = material.ComputeSurfaceSource()
    reader = surface.GetInput("diffuseColor").GetConnectedSource()[0]
    asset = UsdShade.Shader(reader).GetInput("file").Get()
    raw = Sdf.ZipFile.Open(str(tmp_path / "egg.usdz")).GetFile(asset.path)
    with Image.open(io.BytesIO(raw)) as image:
        seen = trimesh.visual.color.uv_to_color(uv, image)[:, :3] / 255
    expected = stripes(torch.from_numpy(points[faces].mean(axis=1))).numpy()
    assert np.abs(seen - expected).mean() < 0.03


def test_the_ply_holds_the_surface_and_its_colours(egg: TexturedModel, tmp_path: Path) -> None:
    write_ply(egg, tmp_path / "egg.ply")
    mesh = trimesh.load_mesh(tmp_path / "egg.ply", process=False)
    assert mesh.is_watertight
    assert mesh.bounds == pytest.approx(np.array([[-0.15, 0, -0.125], [0.15, 0.5, 0.125]]), abs=1e-6)
    expected = stripes(torch.from_numpy(mesh.vertices).float()).numpy() * 255
    assert np.abs(mesh.visual.vertex_colors[:, :3] - expected).mean() < 3
    header = (tmp_path / "egg.ply").read_bytes()[:600]
    assert b"binary_little_endian" in header
    assert b"property float nx" in header


@pytest.mark.parametrize(
    ("origin", "low"), [("floor", (-0.5, 0, -0.5)), ("center", (-0.5, -0.5, -0.5)), ("reference", (0.5, 1.5, 2.5))]
)
def test_the_origin_lies_where_it_was_asked_for(origin: Origin, low: tuple[float, ...]) -> None:
    """A cube of 1 m that stands at (1, 2, 3) in the reference frame."""
    cube = trimesh.creation.box()
    mesh = unwrap(cube.vertices.astype(np.float32), cube.faces.astype(np.int32), 64)
    unit_to_reference = np.eye(4)
    unit_to_reference[:3, 3] = (1, 2, 3)
    placed, model_to_reference = place(mesh, unit_to_reference, origin)
    assert placed.vertices.min(axis=0) == pytest.approx(low)
    assert placed.vertices.min(axis=0) + model_to_reference[:3, 3] == pytest.approx([0.5, 1.5, 2.5])


def test_z_up_is_a_turn(egg: TexturedModel) -> None:
    turned = z_up(egg).mesh
    assert np.ptp(turned.vertices, axis=0) == pytest.approx([0.3, 0.25, 0.5], abs=1e-4)
    assert turned.vertices[:, 2].min() == pytest.approx(0, abs=1e-6)
    assert trimesh.Trimesh(turned.vertices, turned.faces).volume > 0  # not a mirror image
    assert (turned.normals * (turned.vertices - (0, 0, 0.25))).sum(axis=1).min() > 0


def test_only_the_files_asked_for_are_written(egg: TexturedModel, tmp_path: Path) -> None:
    write_formats(egg, tmp_path, ExportConfig(formats=("ply",), levels=("web", "ar"), up="z"))
    assert {path.name for path in tmp_path.iterdir()} == {"model.glb", "model_web.glb", "model_ar.glb", "model.ply"}
    assert trimesh.load_mesh(tmp_path / "model.ply").extents == pytest.approx([0.3, 0.25, 0.5], abs=1e-4)
    assert trimesh.load_scene(tmp_path / "model_web.glb").extents == pytest.approx([0.3, 0.5, 0.25], abs=1e-4)
