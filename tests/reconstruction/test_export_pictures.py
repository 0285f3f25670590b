"""Every export, read by a library that is not ours and drawn here: the picture is that of the object itself.

The object is an egg whose colour follows from the place, so the true picture comes from a formula. Reading, looking up
and drawing share no code with the product.
"""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import trimesh
from browser import in_chromium, needs_chromium
from PIL import Image
from pxr import Sdf, Usd, UsdGeom, UsdShade

from reconstruction.atlas import unwrap
from reconstruction.bake import bake, dilate, to_8bit
from reconstruction.formats import write_formats
from reconstruction.light import save_environment
from reconstruction.model import Material, TexturedModel
from scan2twin.config import ExportConfig

Floats = npt.NDArray[np.float64]
HALF = np.array([0.15, 0.25, 0.125])  # of the egg's axes, metres; it stands on the floor
CENTER = np.array([0.0, 0.25, 0.0])
SIDE = 48  # pixels of a picture
VIEWER = Path(__file__).parents[2] / "reconstruction" / "report" / "model-viewer.min.js"
# Triangles with a colour for each point on them: corners (F, 3, 3), and what turns faces and weights to colours.
Found = tuple[Floats, Callable[[npt.NDArray[np.intp], Floats], Floats]]


def stripes(points: Floats) -> Floats:
    return 0.5 + 0.4 * np.sin(points * (25.0, 20.0, 30.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The egg in every format; it has less triangles than the level `web` may have."""
    ball = trimesh.creation.icosphere(subdivisions=4)
    mesh = unwrap((ball.vertices * HALF + CENTER).astype(np.float32), ball.faces.astype(np.int32), 256)

    def color(points: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(stripes(points.double().numpy())).float()

    base_color = to_8bit(dilate(*bake(mesh, color, 256))).numpy()
    folder = tmp_path_factory.mktemp("exported")
    model = TexturedModel(mesh, Material(base_color), "egg", {"unit": "metre"})
    write_formats(model, folder, ExportConfig(levels=("web",)))
    (folder / "webp").mkdir()
    write_formats(model, folder / "webp", ExportConfig(formats=(), levels=("web",), level_textures="webp"))
    return folder


def at(corners: Floats, faces: npt.NDArray[np.intp], weights: Floats) -> Floats:
    """Values at points inside triangles: corner values (F, 3, C), faces (N,), barycentric weights (N, 3)."""
    return np.einsum("nkc,nk->nc", corners[faces], weights)


def of_trimesh(path: Path) -> Found:
    mesh = trimesh.load_mesh(path, process=False)
    corners = np.asarray(mesh.vertices[mesh.faces])
    if path.suffix == ".ply":
        colors = mesh.visual.vertex_colors[mesh.faces][..., :3] / 255
        return corners, lambda faces, weights: at(colors, faces, weights)
    material = mesh.visual.material
    image = material.image if path.suffix == ".obj" else material.baseColorTexture
    uv = np.asarray(mesh.visual.uv)[mesh.faces]
    return corners, lambda faces, weights: looked_up(image, at(uv, faces, weights))


def of_openusd(path: Path) -> Found:
    stage = Usd.Stage.Open(str(path))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Model/Mesh"))
    corners = np.array(mesh.GetPointsAttr().Get(), float)[np.array(mesh.GetFaceVertexIndicesAttr().Get())]
    uv = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").ComputeFlattened(), float).reshape(-1, 3, 2)
    material, _ = UsdShade.MaterialBindingAPI(mesh.GetPrim()).ComputeBoundMaterial()
    reader = material.ComputeSurfaceSource()[0].GetInput("diffuseColor").GetConnectedSource()[0]
    name = UsdShade.Shader(reader).GetInput("file").Get().path
    image = Image.open(io.BytesIO(Sdf.ZipFile.Open(str(path)).GetFile(name)))
    return corners.reshape(-1, 3, 3), lambda faces, weights: looked_up(image, at(uv, faces, weights))


def looked_up(image: Image.Image, uv: Floats) -> Floats:
    return np.asarray(trimesh.visual.color.uv_to_color(uv, image)[:, :3] / 255)


def rays() -> Floats:
    """Return the axes (3, 3) of a camera that looks down at the egg, as rows: right, up, back."""
    back = np.array([0.5, 0.4, 0.77])
    right = np.cross([0, 1, 0], back)
    axes = np.array([right, np.cross(back, right), back])
    return np.asarray(axes / np.linalg.norm(axes, axis=1, keepdims=True))


def places() -> Floats:
    """Where (SIDE², 2) along right and up, from the egg's middle, the pixels of a parallel projection lie."""
    across = np.linspace(-0.3, 0.3, SIDE)
    return np.stack(np.meshgrid(across, across), axis=2).reshape(-1, 2)


def true_picture() -> Floats:
    """RGBA (SIDE², 4) of the egg itself: where a ray meets the ellipsoid, by the quadratic formula."""
    start = places() @ rays()[:2] + rays()[2]
    origin, direction = start / HALF, -rays()[2] / HALF
    a, b, c = (direction**2).sum(), origin @ direction, (origin**2).sum(axis=1) - 1
    root = b * b - a * c
    depth = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.column_stack([stripes(CENTER + start - depth[:, None] * rays()[2]), root > 0])


def drawn(found: Found) -> Floats:
    """RGBA (SIDE², 4) of triangles, the nearest of those that turn their outside to the camera."""
    corners, color = found
    seen = (corners - CENTER) @ rays().T
    pixels, nearest, picture = places(), np.full(SIDE * SIDE, -np.inf), np.zeros((SIDE * SIDE, 4))
    for face, triangle in enumerate(seen):
        within = ((pixels >= triangle[:, :2].min(axis=0)) & (pixels <= triangle[:, :2].max(axis=0))).all(axis=1)
        area = np.linalg.det(triangle[1:, :2] - triangle[0, :2])
        if area <= 0 or not within.any():
            continue
        (chosen,) = np.nonzero(within)
        uv = (pixels[chosen] - triangle[0, :2]) @ np.linalg.inv(triangle[1:, :2] - triangle[0, :2])
        weights = np.column_stack([1 - uv.sum(axis=1), uv])
        depth = weights @ triangle[:, 2]
        hit = (weights >= -1e-9).all(axis=1) & (depth > nearest[chosen])
        nearest[chosen[hit]] = depth[hit]
        picture[chosen[hit], :3] = color(np.full(hit.sum(), face), weights[hit])
        picture[chosen[hit], 3] = 1
    return picture


@pytest.mark.parametrize("name", ["model.glb", "model_web.glb", "model.obj", "model.ply", "model.usdz"])
def test_an_independent_reader_draws_the_object(exported: Path, name: str) -> None:
    found = (of_openusd if name.endswith("usdz") else of_trimesh)(exported / name)
    picture, true = drawn(found), true_picture()
    both = (picture[:, 3] > 0) & (true[:, 3] > 0)
    assert both.sum() / ((picture[:, 3] > 0) | (true[:, 3] > 0)).sum() > 0.98
    error = np.square(picture[both] - true[both]).mean()
    assert -10 * np.log10(error) > 33  # dB; the texture has 256² texels, JPEG in the web level


def test_the_comparison_tells_a_mirrored_or_turned_model(exported: Path) -> None:
    """So that the test above can fail."""
    corners, color = of_trimesh(exported / "model.glb")
    for wrong in (corners[..., [2, 1, 0]], corners * (-1, 1, 1)):
        picture, true = drawn((wrong[:, ::-1], color)), true_picture()
        both = (picture[:, 3] > 0) & (true[:, 3] > 0)
        assert -10 * np.log10(np.square(picture[both] - true[both]).mean()) < 20


PAGE = """<!doctype html><meta charset="utf-8"><style>body{margin:0} model-viewer{width:256px;height:256px}</style>
<model-viewer id="model" src="SOURCE" camera-orbit="33deg 66deg 105%" interaction-prompt="none" shadow-intensity="0"
 environment-image="legacy" tone-mapping="none"><div slot="progress-bar"></div></model-viewer>
<script type="module">VIEWER</script>"""
DRAW = """
const page = await open({ viewport: { width: 256, height: 256 } });
const seen = [];
for (const address of args.pages) {
  await page.goto(address);
  await page.waitForFunction(() => document.getElementById('model').loaded);
  await page.waitForTimeout(500);
  const size = await page.evaluate(() => document.getElementById('model').getDimensions().toString());
  seen.push([size, (await page.screenshot()).toString('base64')]);
}
return { seen };
"""


@needs_chromium
def test_model_viewer_draws_the_glb(exported: Path, tmp_path: Path) -> None:
    """three.js in a real browser. Not a level with Draco: its decoder would come from the network."""
    pages = []
    for name in ("model.glb", "webp/model_web.glb"):
        data = base64.b64encode((exported / name).read_bytes()).decode()
        page = PAGE.replace("SOURCE", f"data:model/gltf-binary;base64,{data}").replace("VIEWER", VIEWER.read_text())
        file = tmp_path / f"{len(pages)}.html"
        file.write_text(page, encoding="utf-8")
        pages.append(file.as_uri())
    found = in_chromium(DRAW, pages=pages)
    assert found["errors"] == []
    pictures = []
    for size, shot in found["seen"]:
        assert [float(length[:-1]) for length in size.split()] == pytest.approx(2 * HALF, rel=0.01)
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"), float)
        inside = pixels[64:192, 96:160].reshape(-1, 3)
        assert (inside.std(axis=0) > 15).all()  # the stripes of all three channels
        assert pixels[:8, :8].std() < 2  # and nothing beside the egg
        pictures.append(pixels)
    assert np.abs(pictures[0] - pictures[1]).mean() < 3  # of 255


def radiance_picture(path: Path) -> Floats:
    """Read an .hdr by its specification (Ward 1991, Radiance's "Picture File Format"): (H, W, 3)."""
    data = path.read_bytes()
    header, _, rest = data.partition(b"\n\n")
    assert header.startswith(b"#?R")
    assert b"FORMAT=32-bit_rle_rgbe" in header.splitlines()
    size, _, rest = rest.partition(b"\n")
    height, width = map(int, re.fullmatch(rb"-Y (\d+) \+X (\d+)", size).groups())  # type: ignore[union-attr]
    rows, place = np.zeros((height, 4, width), np.uint8), 0
    for row in rows:
        assert rest[place : place + 4] == bytes([2, 2, width >> 8, width & 255])
        place += 4
        for channel in row:
            filled = 0
            while filled < width:
                count = rest[place]
                if count > 128:
                    channel[filled : filled + count - 128] = rest[place + 1]
                    filled, place = filled + count - 128, place + 2
                else:
                    channel[filled : filled + count] = np.frombuffer(rest, np.uint8, count, place + 1)
                    filled, place = filled + count, place + 1 + count
    assert place == len(rest)
    mantissa, exponent = rows[:, :3].astype(float), rows[:, 3:].astype(int)
    return np.asarray((mantissa * 2.0 ** (exponent - 136)).transpose(0, 2, 1))


def test_the_environment_is_a_radiance_picture(tmp_path: Path) -> None:
    """Linear radiance of four orders of magnitude, red first, up in the top row."""
    down, across = np.mgrid[0:16, 0:32]
    image = np.stack([10.0 ** (down / 4 - 2), 0.5 + across / 32, np.full((16, 32), 0.25)], axis=2)
    save_environment(tmp_path / "environment.hdr", torch.from_numpy(image))
    back = radiance_picture(tmp_path / "environment.hdr")
    # One exponent for the three: a channel is as exact as 1/256 of the largest.
    assert (np.abs(back - image).max(axis=2) <= image.max(axis=2) / 128).all()
