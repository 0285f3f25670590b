"""Make the sample capture `skull/` from its 66 original photos (docs/sample.md tells the steps).

    python -m scan2twin.samples.make_skull PHOTOS [--out FOLDER] [--work FOLDER]

Poses come from structure from motion (pycolmap), so the frame is only known up to a similarity: it is turned so
that +Y is up and the face looks along +Z, centred on the object, and scaled so that the object box's longest
side is 1. Raw photos keep their lens distortion; the `condition` stage removes it.
"""

import argparse
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from scan2twin import __version__
from scan2twin.capture.models import (
    App,
    CameraSettings,
    CaptureHeader,
    Device,
    Distortion,
    FrameRecord,
    Intrinsics,
    ObjectBox,
    Pose,
    Scale,
)
from scan2twin.capture.writer import write_capture
from scan2twin.errors import InputError
from scan2twin.samples import SKULL

Matrix = NDArray[np.float64]

SEED = 0
FEATURES = 8000  # a photo; the smooth bone gives few strong ones
PEAK_THRESHOLD = 0.004  # of SIFT's contrast, below its 0.0067: the same reason
LONG_SIDE = 800  # pixels of a shipped frame
JPEG_QUALITY = 90
FRONT_PHOTO = "17.jpg"  # the face, seen from the front
MIN_OBSERVATIONS = 3  # photos that a point must be seen in to tell where the object is
BOX_PERCENTILES = (0.5, 99.5)
BOX_MARGIN = 0.05  # of each extent, on either side
CAMERA_MODEL = "SIMPLE_RADIAL"  # f cx cy k; more coefficients let the first pair run away, and add nothing at the end
OPENCV_TO_OPENGL = np.diag([1.0, -1.0, -1.0])  # camera axes: y down, looks along +z → y up, looks along -z


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder with 01.jpg … 66.jpg")
    parser.add_argument("--out", type=Path, default=SKULL, help="folder of the bundle; its old content goes")
    parser.add_argument("--work", type=Path, help="keep the SfM database here; a finished one is used again")
    arguments = parser.parse_args()
    if not (arguments.photos / FRONT_PHOTO).is_file():
        raise InputError(f"{arguments.photos}: no {FRONT_PHOTO}; give the folder with the original photos")
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        model = structure_from_motion(arguments.photos, work)
    box = normalise(model)
    write_bundle(model, box, arguments.photos, arguments.out)
    print(model.summary())


def structure_from_motion(photos: Path, work: Path) -> Any:
    """Return the largest pycolmap reconstruction of the photos, one shared `CAMERA_MODEL`."""
    pycolmap.set_random_seed(SEED)
    database = work / "database.db"
    if not database.exists():
        partial = work / "partial.db"
        partial.unlink(missing_ok=True)
        extraction = pycolmap.FeatureExtractionOptions()
        extraction.sift.max_num_features = FEATURES
        extraction.sift.peak_threshold = PEAK_THRESHOLD
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model = CAMERA_MODEL
        pycolmap.extract_features(
            partial, photos, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader,
            extraction_options=extraction,
        )  # fmt: skip
        matching = pycolmap.FeatureMatchingOptions()
        matching.guided_matching = True  # doubles the matches, which is what joins the rings to one model
        pycolmap.match_exhaustive(partial, matching_options=matching)
        partial.rename(database)
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.random_seed = SEED
    mapping.num_threads = 1  # repeatable
    models = pycolmap.incremental_mapping(database, photos, work, options=mapping)
    return max(models.values(), key=lambda model: model.num_reg_images())


def normalise(model: Any) -> ObjectBox:
    """Move `model` into the sample's frame, in place, and return the object's box there."""
    cameras = sorted(model.images.values(), key=lambda image: image.name)
    camera_to_world = [camera_to_world_opengl(image) for image in cameras]
    front = next(pose for pose, image in zip(camera_to_world, cameras, strict=True) if image.name == FRONT_PHOTO)
    up = up_direction(
        np.array([pose[:3, 0] for pose in camera_to_world]), np.array([p[:3, 1] for p in camera_to_world])
    )
    forward = front[:3, 2] - up * (up @ front[:3, 2])  # from the object to the camera before the face
    forward /= np.linalg.norm(forward)
    world_to_upright = np.stack([np.cross(up, forward), up, forward])
    model.transform(pycolmap.Sim3d(1.0, pycolmap.Rotation3d(world_to_upright), np.zeros(3)))

    low, high = object_bounds(model)
    scale = 1 / (high - low).max()
    model.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(), -scale * (low + high) / 2))
    return ObjectBox(center=[0.0, 0.0, 0.0], size=[round(float(extent * scale), 4) for extent in high - low])


def camera_to_world_opengl(image: Any) -> Matrix:
    """Return the 4×4 camera-to-world matrix, OpenGL camera axes, of a pycolmap image."""
    world_from_camera = image.cam_from_world().inverse()
    pose = np.eye(4)
    pose[:3, :3] = world_from_camera.rotation.matrix() @ OPENCV_TO_OPENGL
    pose[:3, 3] = world_from_camera.translation
    return pose


def up_direction(rights: Matrix, ups: Matrix) -> Matrix:
    """Return the unit vector most nearly square to every camera's right axis, on the side of their up axes.

    A photographer keeps the horizon level however high he stands, so the right axes (N, 3) lie in the ground plane;
    the up axes (N, 3) lean with the height.
    """
    up: Matrix = np.linalg.svd(rights)[2][2]
    return up if (ups @ up).sum() > 0 else -up


def object_bounds(model: Any) -> tuple[Matrix, Matrix]:
    """Return the low and high corner (3,) of the object: of the well-seen points near where the cameras look."""
    cameras = [camera_to_world_opengl(image) for image in model.images.values()]
    centres, looks = np.array([c[:3, 3] for c in cameras]), np.array([-c[:3, 2] for c in cameras])
    # The point nearest to all optical axes: sum over cameras of (I - d dᵀ)(x - c) = 0.
    squares = np.eye(3) - looks[:, :, None] * looks[:, None, :]
    target = np.linalg.solve(squares.sum(axis=0), (squares @ centres[:, :, None]).sum(axis=0)[:, 0])
    points = np.array([p.xyz for p in model.points3D.values() if p.track.length() >= MIN_OBSERVATIONS])
    radius = 0.5 * np.median(np.linalg.norm(centres - target, axis=1))
    points = points[np.linalg.norm(points - target, axis=1) < radius]
    low, high = np.percentile(points, BOX_PERCENTILES, axis=0)
    margin = BOX_MARGIN * (high - low)
    return low - margin, high + margin


def write_bundle(model: Any, box: ObjectBox, photos: Path, out: Path) -> None:
    """Write the bundle of all registered photos, scaled down, into `out`."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "images").mkdir(parents=True)
    frames = [
        write_frame(i, image, photos, out)
        for i, image in enumerate(sorted(model.images.values(), key=lambda image: image.name))
    ]
    (camera,) = model.cameras.values()
    k1 = float(camera.params[3])  # SIMPLE_RADIAL's k is OpenCV's k1: both scale normalised coordinates by 1 + k r²
    header = CaptureHeader(
        capture_id="skull",
        name="Skull (66 photos, CC BY 4.0, alansartlog)",
        recorded_at=datetime(2026, 11, 23, tzinfo=UTC),  # when the bundle was made: the photos carry no date
        app=App(name="scan2twin.samples.make_skull", version=__version__),
        device=Device(model="unknown", platform="camera", tracker="colmap"),
        object=box,
        scale=Scale(metric=False, source="unknown"),
        camera=CameraSettings(distortion=Distortion(model="opencv", k=[k1, 0.0, 0.0, 0.0])),
    )
    write_capture(out, header, frames)


def write_frame(i: int, image: Any, photos: Path, out: Path) -> FrameRecord:
    """Write one photo as frame `i` and return its record."""
    photo = cv2.imread(str(photos / image.name))
    if photo is None:
        raise InputError(f"{photos / image.name}: not a readable photo; fetch it again")
    height, width = photo.shape[:2]
    size = (LONG_SIDE, round(LONG_SIDE * height / width))
    file = f"images/{i:06d}.jpg"
    scaled = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(out / file), scaled, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    focal, cx, cy = (float(value) for value in image.camera.params[:3])  # pixel origin at the corner, as here
    x, y = size[0] / width, size[1] / height
    pose = camera_to_world_opengl(image)
    return FrameRecord(
        i=i,
        file=file,
        t=float(i),  # order only
        width=size[0],
        height=size[1],
        intrinsics=Intrinsics(fx=focal * x, fy=focal * y, cx=cx * x, cy=cy * y),
        pose_world=Pose(p=pose[:3, 3].tolist(), q=Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()),
        tracking="normal",
    )


if __name__ == "__main__":
    main()
