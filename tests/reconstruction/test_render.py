"""The offline renderer against analytic pictures, and the camera files it takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from reconstruction.appearance import SceneLight, retroreflection
from reconstruction.atlas import unwrap
from reconstruction.bake import bake, dilate, to_8bit
from reconstruction.gltf import write_glb
from reconstruction.model import Material, ModelInfo, TexturedModel
from reconstruction.preview import camera_rotation
from reconstruction.render import Renderer, View, read_views, render_model
from scan2twin.capture.models import Intrinsics
from scan2twin.errors import InputError
from scan2twin.progress import LogProgress

RADIUS, CENTRE = 0.1, np.array([0.3, 0.1, -0.2])  # of a ball in the reference frame, metres
IDENTITY = np.eye(4).tolist()


@pytest.fixture(scope="module")
def ball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published ball, red where x > 0 in the model frame, green elsewhere."""
    folder = tmp_path_factory.mktemp("ball")
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=RADIUS)
    mesh = unwrap(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), 256)

    def red_or_green(points: torch.Tensor) -> torch.Tensor:
        return torch.where(points[:, :1] > 0, torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]))

    texture = to_8bit(dilate(*bake(mesh, red_or_green, 256))).numpy()
    write_glb(TexturedModel(mesh, Material(texture), "ball", {}), folder / "model.glb")
    model_to_reference = np.eye(4)
    model_to_reference[:3, 3] = CENTRE
    ModelInfo(
        capture_id="ball", metric=True, model_to_reference=model_to_reference.tolist(), size_m=[0.2] * 3,
        triangles=len(mesh.faces), vertices=len(mesh.vertices), texture_size=256,
    ).write(folder / "model.json")  # fmt: skip
    return folder


def camera_to_reference(azimuth: float, elevation: float, distance: float) -> list[list[float]]:
    matrix = np.eye(4)
    matrix[:3, :3] = camera_rotation(azimuth, elevation)
    matrix[:3, 3] = CENTRE + distance * matrix[:3, 2]
    rows: list[list[float]] = matrix.tolist()
    return rows


def render(ball: Path, tmp_path: Path, **document: Any) -> np.ndarray:
    (tmp_path / "cameras.json").write_text(json.dumps(document))
    render_model(ball, tmp_path / "cameras.json", tmp_path / "out", LogProgress())
    (picture,) = (tmp_path / "out").iterdir()
    return np.asarray(Image.open(picture))


def ball_coverage(document: dict[str, Any], subpixels: int = 8) -> np.ndarray:
    """Share of each pixel whose rays hit the ball: |o + t d - c| = r has a solution. Float64, by counting."""
    (frame,) = document["frames"]
    matrix, w, h = np.array(frame["transform_matrix"]), document["w"], document["h"]
    steps = (np.arange(subpixels) + 0.5) / subpixels
    x = ((np.arange(w)[:, None] + steps).ravel() - document["cx"]) / document["fl_x"]
    y = (document["cy"] - (np.arange(h)[:, None] + steps).ravel()) / document["fl_y"]
    rays = np.stack([*np.meshgrid(x, y), -np.ones((h * subpixels, w * subpixels))], axis=2) @ matrix[:3, :3].T
    to_ball = CENTRE - matrix[:3, 3]
    along = (rays @ to_ball) ** 2 / (rays**2).sum(axis=2)
    hit = to_ball @ to_ball - along < RADIUS**2
    return hit.reshape(h, subpixels, w, subpixels).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("azimuth", "elevation", "cx", "cy"), [(0.0, 0.0, 60.0, 40.0), (1.0, 0.4, 60.0, 40.0), (2.5, -0.9, 75.5, 33.25)]
)
def test_the_silhouette_is_the_balls(
    ball: Path, tmp_path: Path, azimuth: float, elevation: float, cx: float, cy: float
) -> None:
    document = {
        "w": 120, "h": 80, "fl_x": 150.0, "fl_y": 140.0, "cx": cx, "cy": cy,
        "frames": [{"file_path": "images/view.png", "transform_matrix": camera_to_reference(azimuth, elevation, 0.6)}],
    }  # fmt: skip
    alpha = render(ball, tmp_path, **document)[..., 3] / 255
    expected = ball_coverage(document)
    assert alpha.sum() == pytest.approx(expected.sum(), rel=0.003)
    edge = (expected > 0) & (expected < 1)
    assert np.abs(alpha - expected)[edge].mean() < 0.05
    assert np.abs(alpha - expected)[~edge].max() < 0.02


def test_right_is_right_and_colour_is_not_mixed_with_the_background(ball: Path, tmp_path: Path) -> None:
    picture = render(
        ball, tmp_path, w=64, h=64, fl_x=128,
        frames=[{"file_path": "a/front", "transform_matrix": camera_to_reference(0.0, 0.0, 0.6)}],
    ).astype(int)  # fmt: skip
    left, right = picture[:, :28], picture[:, 36:]
    assert (right[right[..., 3] > 0][:, 0] > 250).all()  # red, also where a pixel is half covered
    assert (left[left[..., 3] > 0][:, 1] > 250).all()
    assert (tmp_path / "out" / "front.png").exists()


def test_field_of_view_gives_the_focal_length_and_frames_may_differ(tmp_path: Path) -> None:
    document = {
        "camera_angle_x": 1.0,
        "w": 200,
        "h": 100,
        "frames": [
            {"file_path": "./train/r_0", "transform_matrix": IDENTITY},
            {"file_path": "./train/r_1.jpg", "transform_matrix": IDENTITY, "w": 400, "fl_x": 50, "cx": 7},
            {"file_path": "v1.5", "transform_matrix": IDENTITY},
        ],
    }
    (tmp_path / "cameras.json").write_text(json.dumps(document))
    first, second, third = read_views(tmp_path / "cameras.json")
    assert (first.name, second.name, third.name) == ("r_0", "r_1", "v1.5")
    assert first.intrinsics.fx == first.intrinsics.fy == pytest.approx(100 / np.tan(0.5))
    assert (first.intrinsics.cx, first.intrinsics.cy) == (100, 50)
    assert (second.width, second.intrinsics.fx, second.intrinsics.cx) == (400, 50, 7)


BAD_FILES: list[tuple[Any, str]] = [
    ("{", "Invalid JSON"),
    ({"fl_x": 10}, "frames: Field required"),
    ({"fl_x": 10, "frames": []}, "frames: List should have at least 1 item"),
    ({"frames": [{"file_path": "a", "transform_matrix": IDENTITY}]}, r"frames\[0\] \(a\): no focal length"),
    ({"fl_x": 9, "frames": [{"file_path": "a", "transform_matrix": [[1, 2]]}]}, "not 4×4"),
    ({"fl_x": 9, "frames": [{"file_path": "a", "transform_matrix": [[1], [1, 2]]}]}, "not 4×4"),
    ({"fl_x": 9, "frames": [{"file_path": "a", "transform_matrix": (2 * np.eye(4)).tolist()}]}, "not a rotation"),
    ({"fl_x": 9, "frames": [{"file_path": "..", "transform_matrix": IDENTITY}]}, "names no file"),
    ({"fl_x": 9, "k1": 0.1, "frames": [{"file_path": "a", "transform_matrix": IDENTITY}]}, "only pinhole cameras"),
    ({"fl_x": -9, "frames": [{"file_path": "a", "transform_matrix": IDENTITY}]}, "fl_x: Input should be greater"),
    (
        {"fl_x": 9, "frames": [{"file_path": f"{part}/r_0", "transform_matrix": IDENTITY} for part in "ab"]},
        r"2 frames would be written as r_0\.png",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_wrong_camera_files_are_refused(ball: Path, tmp_path: Path, content: Any, message: str) -> None:
    cameras = tmp_path / "cameras.json"
    cameras.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=message):
        render_model(ball, cameras, tmp_path / "out", LogProgress())
    assert not (tmp_path / "out").exists()


def test_a_missing_camera_file_or_model_is_named(ball: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        render_model(ball, tmp_path / "none.json", tmp_path / "out", LogProgress())
    (tmp_path / "cameras.json").write_text(
        json.dumps({"fl_x": 9, "frames": [{"file_path": "a", "transform_matrix": IDENTITY}]})
    )
    with pytest.raises(InputError, match=r"model\.json: not a model that `scan2twin run` left"):
        render_model(tmp_path, tmp_path / "cameras.json", tmp_path / "out", LogProgress())


def test_a_camera_inside_the_model_draws_its_inside(ball: Path, tmp_path: Path) -> None:
    document = {
        "w": 16, "h": 16, "fl_x": 10,
        "frames": [{"file_path": "a", "transform_matrix": camera_to_reference(0, 0, 0.01)}],
    }  # fmt: skip
    assert (render(ball, tmp_path, **document)[..., 3] == 255).all()


def test_a_lamp_at_the_camera_fades_with_slant_and_distance() -> None:
    """A white matt ball under a lamp alone: cos · (exposed distance / distance)², and the gloss of roughness 1."""
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=0.5)
    mesh = unwrap(sphere.vertices.astype(np.float32), sphere.faces.astype(np.int32), 64)
    white = Material(np.full((64, 64, 3), 255, np.uint8), roughness=1.0)
    camera_to_world = np.eye(4)
    camera_to_world[2, 3] = 3.0
    view = View("", camera_to_world, Intrinsics(fx=160, fy=160, cx=32.5, cy=32.5), 65, 65)
    drawn = Renderer(mesh, white, SceneLight(1.0, 1.0)).draw(view)[32]
    for column in range(10, 56, 5):
        slope = (column - 32) / 160
        # Where the ray from (0, 0, 3) along (slope, 0, -1) meets the ball of radius 1/2.
        a, b, c = slope**2 + 1, -3.0, 9 - 0.25
        t = (-b - np.sqrt(b * b - a * c)) / a
        point = np.array([slope * t, 0, 3 - t])
        away = np.array([0, 0, 3]) - point
        distance = np.linalg.norm(away)
        cosine = point @ away / 0.5 / distance
        lamp = cosine * 9 / distance**2
        expected = lamp * (1 + 0.04 * retroreflection(torch.tensor(cosine), torch.tensor(1.0)).item())
        assert drawn[column, 0].item() == pytest.approx(expected, rel=0.02)
