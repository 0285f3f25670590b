"""GLB and OBJ: read by other programs, the model has its size, its orientation and its colours."""

import json
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from reconstruction.atlas import UvMesh, unwrap
from reconstruction.export import place
from reconstruction.gltf import read_glb, write_glb
from reconstruction.model import Material, TexturedModel
from reconstruction.obj import write_obj
from scan2twin.errors import InputError

VALIDATOR = Path(__file__).parents[1] / "node_modules" / "gltf-validator"
VALIDATE = """
const fs = require("fs"), validator = require(process.argv[1]);
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))
  .then(report => console.log(JSON.stringify(report)));
"""
SIZE_M = np.array([0.2, 0.5, 0.3])
UNIT_TO_REFERENCE = np.array([[0.5, 0, 0, 1.0], [0, 0.5, 0, 2.0], [0, 0, 0.5, -3.0], [0, 0, 0, 1]])
FACE_COLORS = {
    (1, 0, 0): (200, 30, 30), (-1, 0, 0): (30, 200, 200), (0, 1, 0): (30, 200, 30),
    (0, -1, 0): (200, 30, 200), (0, 0, 1): (30, 30, 200), (0, 0, -1): (200, 200, 30),
}  # fmt: skip


@pytest.fixture(scope="module")
def box() -> TexturedModel:
    """A box of 0.2 × 0.5 × 0.3 m whose six faces have six colours, half of it below the reference's origin."""
    plain = trimesh.creation.box(extents=SIZE_M / 0.5)
    unwrapped = unwrap(plain.vertices.astype(np.float32), plain.faces.astype(np.int32), 128)
    mesh, _ = place(unwrapped, UNIT_TO_REFERENCE, "floor")
    # Paint a generous square round every triangle; the gutter between charts keeps the colours apart.
    texture = np.zeros((128, 128, 3), np.uint8)
    corners = mesh.vertices[mesh.faces]
    outward = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for triangle, normal in zip(mesh.uv[mesh.faces] * 128, outward, strict=True):
        color = FACE_COLORS[tuple(np.rint(normal / np.linalg.norm(normal)).astype(int).tolist())]
        low, high = np.floor(triangle.min(axis=0)).astype(int) - 1, np.ceil(triangle.max(axis=0)).astype(int) + 1
        texture[max(low[1], 0) : high[1], max(low[0], 0) : high[0]] = color
    roughness = np.zeros_like(texture)
    roughness[..., 0], roughness[..., 1] = 240, 120
    bumps = np.full_like(texture, 128)
    bumps[..., 2] = 255
    return TexturedModel(
        mesh,
        Material(texture, roughness, bumps, occluded=True),
        "painted-box",
        {"capture_id": "painted-box", "unit": "metre"},
    )


def colors_of_faces(mesh: trimesh.Trimesh, image: Image.Image) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Look up the middle of every triangle as trimesh understands its texture."""
    pixels = trimesh.visual.color.uv_to_color(mesh.visual.uv[mesh.faces].mean(axis=1), image)[:, :3]
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for normal, color in zip(np.rint(mesh.face_normals).astype(int).tolist(), pixels.tolist(), strict=True):
        found.setdefault(tuple(normal), []).append(tuple(color))
    return found


def json_chunk(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    document: dict[str, Any] = json.loads(data[20 : 20 + length])
    return document


def test_the_glb_has_size_place_and_colours(box: TexturedModel, tmp_path: Path) -> None:
    write_glb(box, tmp_path / "box.glb")
    scene = trimesh.load_scene(tmp_path / "box.glb", process=False)
    (mesh,) = scene.geometry.values()
    assert scene.bounds == pytest.approx(np.array([[-0.1, 0, -0.15], [0.1, 0.5, 0.15]]), abs=1e-6)
    assert np.array_equal(scene.graph.get(scene.graph.nodes_geometry[0])[0], np.eye(4))
    assert mesh.volume == pytest.approx(SIZE_M.prod(), rel=1e-5)  # positive: the faces look outwards
    assert colors_of_faces(mesh, mesh.visual.material.baseColorTexture) == {
        normal: [color, color] for normal, color in FACE_COLORS.items()
    }


def test_the_obj_has_size_place_and_colours(box: TexturedModel, tmp_path: Path) -> None:
    write_obj(box, tmp_path)
    mesh = trimesh.load_mesh(tmp_path / "model.obj", process=False)
    assert mesh.bounds == pytest.approx(np.array([[-0.1, 0, -0.15], [0.1, 0.5, 0.15]]), abs=1e-6)
    assert mesh.volume == pytest.approx(SIZE_M.prod(), rel=1e-5)
    assert colors_of_faces(mesh, mesh.visual.material.image) == {
        normal: [color, color] for normal, color in FACE_COLORS.items()
    }


def test_the_obj_is_one_closed_surface(box: TexturedModel, tmp_path: Path) -> None:
    write_obj(box, tmp_path)
    lines = (tmp_path / "model.obj").read_text().splitlines()
    assert lines[0] == "# painted-box, unit: metre"
    assert sum(line.startswith("v ") for line in lines) == 8
    faces = [[int(corner.split("/")[0]) - 1 for corner in line.split()[1:]] for line in lines if line[:2] == "f "]
    positions = [[float(x) for x in line.split()[1:]] for line in lines if line[:2] == "v "]
    assert trimesh.Trimesh(positions, faces, process=False).is_watertight


def test_the_mtl_names_textures_that_exist(box: TexturedModel, tmp_path: Path) -> None:
    write_obj(box, tmp_path)
    values = dict(line.split(maxsplit=1) for line in (tmp_path / "model.mtl").read_text().splitlines())
    textures = {key: values[key] for key in ("map_Kd", "map_Pr", "map_Pm", "norm", "map_Bump")}
    for name in textures.values():
        with Image.open(tmp_path / name) as image:
            assert image.size == (128, 128)
    assert np.asarray(Image.open(tmp_path / textures["map_Pr"])).max() == 120
    assert np.asarray(Image.open(tmp_path / textures["map_Pm"])).max() == 0


def test_reading_gives_back_what_was_written(box: TexturedModel, tmp_path: Path) -> None:
    write_glb(box, tmp_path / "box.glb")
    mesh, material = read_glb(tmp_path / "box.glb")
    assert np.array_equal(mesh.vertices, box.mesh.vertices)
    assert np.array_equal(mesh.faces, box.mesh.faces)
    assert mesh.uv == pytest.approx(box.mesh.uv, abs=1e-7)
    assert mesh.normals == pytest.approx(box.mesh.normals, abs=1e-6)
    assert np.array_equal(material.base_color, box.material.base_color)
    assert np.array_equal(material.metallic_roughness, box.material.metallic_roughness)
    assert np.array_equal(material.normal, box.material.normal)
    assert material.occluded
    assert len(mesh.welded()[0]) == 8


def test_occlusion_is_bound_where_there_is_some(box: TexturedModel, tmp_path: Path) -> None:
    for occluded in (True, False):
        model = replace(box, material=replace(box.material, occluded=occluded))
        write_glb(model, tmp_path / "box.glb")
        (material,) = json_chunk(tmp_path / "box.glb")["materials"]
        packed = material["pbrMetallicRoughness"]["metallicRoughnessTexture"]
        assert material.get("occlusionTexture") == (packed if occluded else None)  # one image for all three
        assert read_glb(tmp_path / "box.glb")[1].occluded == occluded


def test_constant_roughness_is_written_as_a_factor(box: TexturedModel, tmp_path: Path) -> None:
    plain = TexturedModel(box.mesh, Material(box.material.base_color, roughness=0.7), "box", {})
    write_glb(plain, tmp_path / "box.glb")
    (material,) = json_chunk(tmp_path / "box.glb")["materials"]
    assert material["pbrMetallicRoughness"]["roughnessFactor"] == 0.7
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    assert read_glb(tmp_path / "box.glb")[1].roughness == 0.7


def test_the_glb_says_where_it_comes_from(box: TexturedModel, tmp_path: Path) -> None:
    write_glb(box, tmp_path / "box.glb")
    document = json_chunk(tmp_path / "box.glb")
    assert document["asset"]["generator"].startswith("scan2twin ")
    assert document["asset"]["extras"] == {"capture_id": "painted-box", "unit": "metre"}
    assert document["meshes"][0]["name"] == document["nodes"][-1]["name"] == "painted-box"


@pytest.mark.skipif(
    shutil.which("node") is None or not VALIDATOR.exists(),
    reason="the Khronos validator needs node and `npm ci --prefix tests`",
)
@pytest.mark.parametrize("textured", [True, False])
def test_the_khronos_validator_has_nothing_to_say(box: TexturedModel, tmp_path: Path, textured: bool) -> None:
    model = box if textured else TexturedModel(box.mesh, Material(box.material.base_color), "box", {})
    write_glb(model, tmp_path / "box.glb")
    done = subprocess.run(
        ["node", "-e", VALIDATE, str(VALIDATOR), str(tmp_path / "box.glb")], capture_output=True, text=True, check=True
    )
    issues = json.loads(done.stdout)["issues"]
    assert [issues[kind] for kind in ("numErrors", "numWarnings", "numInfos", "numHints")] == [0] * 4, issues[
        "messages"
    ]


@pytest.mark.parametrize("content", [b"", b"glTF", b"not a model at all", None])
def test_a_file_that_is_no_glb_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "model.glb").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.glb: not a GLB"):
        read_glb(tmp_path / "model.glb")


def test_a_truncated_glb_is_refused(box: TexturedModel, tmp_path: Path) -> None:
    write_glb(box, tmp_path / "box.glb")
    data = (tmp_path / "box.glb").read_bytes()
    (tmp_path / "box.glb").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"box\.glb: not a GLB"):
        read_glb(tmp_path / "box.glb")


def test_the_floor_is_at_zero_and_the_way_back_is_exact() -> None:
    vertices = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    mesh = UvMesh(vertices, vertices, vertices[:, :2], np.zeros((1, 3), np.int32), np.arange(50, dtype=np.int32))
    placed, model_to_reference = place(mesh, UNIT_TO_REFERENCE, "floor")
    low, high = placed.vertices.min(axis=0), placed.vertices.max(axis=0)
    assert low[1] == 0
    assert (low + high)[[0, 2]] == pytest.approx([0, 0], abs=1e-6)
    back = placed.vertices @ model_to_reference[:3, :3].T + model_to_reference[:3, 3]
    assert back == pytest.approx(vertices * 0.5 + (1, 2, -3), abs=1e-6)
