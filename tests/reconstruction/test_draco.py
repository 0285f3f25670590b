"""Draco in a GLB: Google's own decoder, the Khronos validator and our reader find the mesh that was written."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial import cKDTree

from reconstruction.atlas import UvMesh, unwrap
from reconstruction.draco import DRACO, NORMAL_BITS, POSITION_BITS, UV_BITS
from reconstruction.formats import write_formats
from reconstruction.gltf import read_glb, write_glb
from reconstruction.model import Material, TexturedModel
from scan2twin.config import ExportConfig

MODULES = Path(__file__).parents[1] / "node_modules"
needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "draco3d").exists(),
    reason="the Khronos validator and Google's decoder need node and `npm ci --prefix tests`",
)
VALIDATE = """
const fs = require("fs"), validator = require(process.argv[1] + "/gltf-validator");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])))
  .then(report => console.log(JSON.stringify(report)));
"""
# Decodes by the ids that the extension names, as a viewer does.
DECODE = """
const fs = require("fs"), draco3d = require(process.argv[1] + "/draco3d");
const glb = fs.readFileSync(process.argv[2]), length = glb.readUInt32LE(12);
const tree = JSON.parse(glb.subarray(20, 20 + length)), start = 28 + length;
const extension = tree.meshes[0].primitives[0].extensions.KHR_draco_mesh_compression;
const view = tree.bufferViews[extension.bufferView], offset = start + (view.byteOffset || 0);
draco3d.createDecoderModule({}).then(draco => {
  const buffer = new draco.DecoderBuffer(), decoder = new draco.Decoder(), mesh = new draco.Mesh();
  const data = glb.subarray(offset, offset + view.byteLength);
  buffer.Init(new Int8Array(data), data.length);
  const status = decoder.DecodeBufferToMesh(buffer, mesh);
  if (!status.ok()) throw new Error(status.error_msg());
  const result = { faces: [] }, face = new draco.DracoInt32Array();
  for (let k = 0; k < mesh.num_faces(); k++) {
    decoder.GetFaceFromMesh(mesh, k, face);
    result.faces.push([0, 1, 2].map(corner => face.GetValue(corner)));
  }
  for (const [name, id] of Object.entries(extension.attributes)) {
    const attribute = decoder.GetAttributeByUniqueId(mesh, id), values = new draco.DracoFloat32Array();
    decoder.GetAttributeFloatForAllPoints(mesh, attribute, values);
    result[name] = Array.from({ length: values.size() }, (_, k) => values.GetValue(k));
  }
  console.log(JSON.stringify({ tree, result }));
});
"""


@pytest.fixture(scope="module")
def egg() -> TexturedModel:
    """An egg of 0.3 × 0.5 × 0.25 m with a normal map, its texture of noise."""
    ball = trimesh.creation.icosphere(subdivisions=3)
    mesh = unwrap((ball.vertices * (0.15, 0.25, 0.125)).astype(np.float32), ball.faces.astype(np.int32), 64)
    texture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    bumps = np.full_like(texture, 128)
    bumps[..., 2] = 255
    return TexturedModel(mesh, Material(texture, normal=bumps), "egg", {})


@pytest.fixture(scope="module")
def compressed(egg: TexturedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("draco") / "egg.glb"
    write_glb(egg, path, compression="draco")
    return path


def node(script: str, path: Path) -> Any:
    done = subprocess.run(["node", "-e", script, str(MODULES), str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def assert_same_surface(mesh: UvMesh, vertices: Any, normals: Any, uv: Any, faces: Any) -> None:
    """Each decoded vertex is one of `mesh`, moved within the quantisation; the triangles join the same ones."""
    _, original = cKDTree(np.hstack([mesh.vertices, mesh.uv])).query(np.hstack([vertices, uv]))
    step = np.ptp(mesh.vertices, axis=0).max() / (2**POSITION_BITS - 1)
    assert np.abs(vertices - mesh.vertices[original]).max() <= step / 2 + 1e-7
    assert np.abs(uv - mesh.uv[original]).max() <= np.ptp(mesh.uv, axis=0).max() / (2**UV_BITS - 1) / 2 + 1e-7
    cosine = (normals * mesh.normals[original]).sum(axis=1)
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < np.degrees(2 / 2 ** (NORMAL_BITS - 1))

    def turned(triangles: Any) -> list[tuple[int, ...]]:
        """Each triangle from its smallest vertex on: the winding stays."""
        return sorted(tuple(np.roll(triangle, -np.argmin(triangle)).tolist()) for triangle in triangles)

    assert turned(original[faces]) == turned(mesh.faces)


@needs_node
def test_googles_decoder_finds_the_mesh_that_was_written(egg: TexturedModel, compressed: Path) -> None:
    found = node(DECODE, compressed)
    decoded, tree = found["result"], found["tree"]
    arrays = {name: np.array(decoded[name]).reshape(-1, k) for name, k in
              (("POSITION", 3), ("NORMAL", 3), ("TEXCOORD_0", 2))}  # fmt: skip
    faces = np.array(decoded["faces"])
    assert_same_surface(egg.mesh, arrays["POSITION"], arrays["NORMAL"], arrays["TEXCOORD_0"], faces)

    (primitive,) = tree["meshes"][0]["primitives"]
    assert set(primitive["attributes"]) == set(arrays)  # no tangents
    for name, values in arrays.items():
        accessor = tree["accessors"][primitive["attributes"][name]]
        assert accessor["count"] == len(values)
        assert accessor["min"] == pytest.approx(values.min(axis=0), abs=1e-6)
        assert accessor["max"] == pytest.approx(values.max(axis=0), abs=1e-6)
        assert "bufferView" not in accessor
    indices = tree["accessors"][primitive["indices"]]
    assert (indices["count"], indices["min"], indices["max"]) == (faces.size, [0], [faces.max()])
    assert tree["extensionsUsed"] == tree["extensionsRequired"] == [DRACO]


@needs_node
def test_the_khronos_validator_finds_no_error(compressed: Path) -> None:
    """It cannot look into Draco, so takes the buffer for unused; what it warns of is that it cannot."""
    issues = node(VALIDATE, compressed)["issues"]
    assert issues["numErrors"] == 0, issues["messages"]
    assert {message["code"] for message in issues["messages"]} <= {
        "UNSUPPORTED_EXTENSION", "UNUSED_OBJECT", "MESH_PRIMITIVE_GENERATED_TANGENT_SPACE"
    }  # fmt: skip


def test_our_reader_reads_it(egg: TexturedModel, compressed: Path) -> None:
    mesh, material = read_glb(compressed)
    assert_same_surface(egg.mesh, mesh.vertices, mesh.normals, mesh.uv, mesh.faces)
    assert np.array_equal(material.base_color, egg.material.base_color)
    assert np.array_equal(material.normal, egg.material.normal)  # type: ignore[arg-type]


def test_only_the_levels_are_compressed_and_only_when_asked(egg: TexturedModel, tmp_path: Path) -> None:
    sizes = {}
    for compression in ("none", "draco"):
        folder = tmp_path / compression
        folder.mkdir()
        write_formats(egg, folder, ExportConfig(formats=(), levels=("web",), level_compression=compression))
        sizes[compression] = (folder / "model_web.glb").stat().st_size
        assert (DRACO.encode() in (folder / "model_web.glb").read_bytes()) == (compression == "draco")
        assert DRACO.encode() not in (folder / "model.glb").read_bytes()
    assert sizes["draco"] < sizes["none"] - egg.mesh.vertices.nbytes
