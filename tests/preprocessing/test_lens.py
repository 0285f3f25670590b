"""Lens models against COLMAP's own, and how conditioning uses them."""

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.condition import new_camera, raw_to_target, target_to_raw, warp_image
from preprocessing.lens import distort, undistort
from scan2twin.capture.models import Distortion, Intrinsics
from scan2twin.errors import CaptureError
from scan2twin.frames import SourceCamera

SIZE = (640, 480)
# COLMAP's model and parameters -> ours. Coefficients are several times a real lens's.
CAMERAS = {
    "SIMPLE_RADIAL": ([500, 320, 240, -0.1], "opencv", [-0.1, 0, 0, 0]),
    "RADIAL": ([500, 320, 240, -0.1, 0.05], "opencv", [-0.1, 0.05, 0, 0]),
    "OPENCV": ([500, 505, 320, 240, 0.1, -0.05, 0.002, -0.003], "opencv", [0.1, -0.05, 0.002, -0.003]),
    "FULL_OPENCV": (
        [500, 505, 320, 240, 0.1, -0.05, 0.002, -0.003, 0.01, 0.02, -0.01, 0.005],
        "opencv",
        [0.1, -0.05, 0.002, -0.003, 0.01, 0.02, -0.01, 0.005],
    ),
    "SIMPLE_RADIAL_FISHEYE": ([500, 320, 240, 0.05], "opencv_fisheye", [0.05, 0, 0, 0]),
    "RADIAL_FISHEYE": ([500, 320, 240, 0.05, -0.01], "opencv_fisheye", [0.05, -0.01, 0, 0]),
    "OPENCV_FISHEYE": ([300, 305, 320, 240, 0.05, -0.02, 0.01, -0.003], "opencv_fisheye", [0.05, -0.02, 0.01, -0.003]),
    "THIN_PRISM_FISHEYE": (
        [300, 305, 320, 240, 0.05, -0.02, 0.002, -0.003, 0.01, 0.002, 0.001, -0.002],
        "thin_prism_fisheye",
        [0.05, -0.02, 0.002, -0.003, 0.01, 0.002, 0.001, -0.002],
    ),
    "FOV": ([500, 505, 320, 240, 0.9], "fov", [0.9]),
}


def colmap_and_ours(name: str) -> tuple[pycolmap.Camera, SourceCamera]:
    params, model, k = CAMERAS[name]
    camera = pycolmap.Camera(model=name, width=SIZE[0], height=SIZE[1], params=params)
    K = camera.calibration_matrix()
    intrinsics = Intrinsics(fx=K[0, 0], fy=K[1, 1], cx=K[0, 2], cy=K[1, 2])
    return camera, SourceCamera(
        width=SIZE[0], height=SIZE[1], intrinsics=intrinsics, distortion=k, distortion_model=model
    )


@pytest.mark.parametrize("name", CAMERAS)
def test_pixels_are_colmap_s(name: str) -> None:
    camera, source = colmap_and_ours(name)
    target = new_camera(source, 640)
    rays = np.random.default_rng(0).uniform(-0.45, 0.45, (300, 2))
    raw = camera.img_from_cam(np.column_stack([rays, np.ones(len(rays))]))
    pixels = rays * target.focal + [target.width / 2, target.height / 2]
    assert np.abs(target_to_raw(pixels, source, target) - raw).max() < 1e-6
    assert np.abs(raw_to_target(raw, source, target) - pixels).max() < 1e-5
    Distortion(model=source.distortion_model, k=source.distortion)  # the capture format has it


@pytest.mark.parametrize("name", ["OPENCV", "THIN_PRISM_FISHEYE", "FOV"])
@pytest.mark.parametrize("quarters", range(4))
def test_the_picture_follows_the_lens(name: str, quarters: int) -> None:
    """Blurred dots at the raw pixels COLMAP projects points to: their centroids after the warp."""
    camera, source = colmap_and_ours(name)
    source = source.model_copy(update={"rotation_quarters": quarters})
    target = new_camera(source, 640)
    rays = np.stack(np.meshgrid([-0.35, -0.1, 0.2, 0.4], [-0.3, 0.05, 0.3]), -1).reshape(-1, 2)
    raw = camera.img_from_cam(np.column_stack([rays, np.ones(len(rays))]))
    y, x = np.mgrid[0 : SIZE[1], 0 : SIZE[0]] + 0.5
    picture = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 2.5**2)) for u, v in raw)
    warped = warp_image(np.uint8(np.rint(250 * picture)), source, target).astype(np.float64)
    for u, v in raw_to_target(raw, source, target):
        row, column = int(v) - 9, int(u) - 9
        patch = warped[row : row + 19, column : column + 19]
        rows, columns = np.mgrid[row : row + 19, column : column + 19] + 0.5
        centroid = [(patch * columns).sum() / patch.sum(), (patch * rows).sum() / patch.sum()]
        # The dots are stretched a little across the lens, hence not a twentieth here.
        assert np.abs(np.array(centroid) - [u, v]).max() < 0.15


coefficients = st.floats(-0.05, 0.05)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from([("opencv", 4), ("opencv", 8), ("opencv_fisheye", 4), ("thin_prism_fisheye", 8)]),
    st.lists(coefficients, min_size=8, max_size=8),
)
def test_undistorting_undoes_distorting(model: tuple[str, int], k: list[float]) -> None:
    grid = np.stack(np.meshgrid(np.linspace(-0.6, 0.6, 9), np.linspace(-0.6, 0.6, 9)), -1).reshape(-1, 2)
    name, count = model
    back = undistort(distort(grid, name, k[:count]), name, k[:count])
    assert np.nanmax(np.abs(back - grid)) < 1e-6
    assert np.isfinite(back).mean() > 0.9  # folds lie far out, if anywhere


def test_what_a_folding_lens_shows_is_not_guessed() -> None:
    k = [-1.5, 0.0, 0.0, 0.0]  # r (1 - 1.5 r²) has its greatest value .314 at r = .471
    back = undistort(np.array([[0.3, 0.0], [0.4, 0.0]]), "opencv", k)
    assert back[0, 0] * (1 - 1.5 * back[0, 0] ** 2) == pytest.approx(0.3)
    assert back[0, 0] < 0.471
    assert np.isnan(back[1]).all()


def test_a_fisheye_that_sees_everything_gives_a_flat_image_of_what_fits() -> None:
    source = SourceCamera(
        width=1000, height=1000, intrinsics=Intrinsics(fx=310, fy=310, cx=500, cy=500),
        distortion=[0.0, 0.0, 0.0, 0.0], distortion_model="opencv_fisheye",
    )  # fmt: skip
    target = new_camera(source, 4000)
    assert 100 < np.degrees(2 * np.arctan(target.width / 2 / target.focal)) < 111
    picture = np.zeros((1000, 1000, 3), np.uint8)
    cv2.circle(picture, (500, 500), round(310 * np.radians(30)), (0, 255, 0), -1)
    warped = warp_image(picture, source, target)
    radius = np.sqrt((warped[..., 1] > 127).sum() / np.pi)
    assert radius == pytest.approx(target.focal * np.tan(np.radians(30)), abs=1.0)


def test_an_off_centre_fisheye_is_refused() -> None:
    source = colmap_and_ours("OPENCV_FISHEYE")[1]
    wrong = source.model_copy(update={"intrinsics": Intrinsics(fx=300, fy=300, cx=40, cy=240)})
    with pytest.raises(CaptureError, match=r"opencv_fisheye distortion .* do not fit an image of 640×480"):
        new_camera(wrong, 640)
