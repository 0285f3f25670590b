"""The dataset in the layouts other tools read: transforms.json (nerfstudio, instant-ngp) and LLFF (nvdiffrec, NeRF).

Both hold poses in the reference frame's units (metres if the dataset is metric).
"""

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.images import UInt8, read_image, shrink, write_png
from scan2twin.capture.models import Intrinsics
from scan2twin.frames import Dataset, DatasetFrame

Float64 = npt.NDArray[np.float64]

# transforms.json has +Z up: x, y, z of the reference frame become x, -z, y.
Z_UP_FROM_Y_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def camera_to_reference(frame: DatasetFrame, unit_to_reference: Float64) -> Float64:
    """Return the rigid camera-to-reference 4×4 of `frame` (OpenGL camera axes)."""
    unit = np.array(frame.camera_to_unit)
    moved: Float64 = unit_to_reference @ unit
    moved[:3, :3] = unit[:3, :3]
    return moved


def write_transforms(folder: Path, dataset: Dataset) -> None:
    """Write `folder`/transforms.json beside the dataset's images and masks: views with weight, in recording order.

    Camera-to-world, OpenGL camera axes, world +Z up; `applied_transform` (3×4) leads from the reference frame to
    that world. (nerfstudio documentation, "Data conventions".)
    """
    unit_to_reference = np.array(dataset.unit_to_reference)
    frames = [
        {
            "file_path": frame.image, "mask_path": frame.mask, "w": dataset.resolution, "h": dataset.resolution,
            "fl_x": frame.intrinsics.fx, "fl_y": frame.intrinsics.fy,
            "cx": frame.intrinsics.cx, "cy": frame.intrinsics.cy,
            "transform_matrix": (Z_UP_FROM_Y_UP @ camera_to_reference(frame, unit_to_reference)).tolist(),
        }
        for frame in dataset.frames
        if frame.weight > 0
    ]  # fmt: skip
    split = {
        f"{kind}_filenames": [one.image for one in dataset.frames if one.weight > 0 and one.split == name]
        for kind, name in (("train", "train"), ("test", "heldout"))
    }
    document = {
        "camera_model": "OPENCV", "applied_transform": Z_UP_FROM_Y_UP[:3].tolist(), **split, "frames": frames,
    }  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def centred_rotation(intrinsics: Intrinsics, resolution: int) -> Float64:
    """Return the rotation (3×3, OpenGL axes) from a camera that looks through the image's centre to the given one.

    Turning a camera about its own centre changes an image by a homography, without parallax: this is how a crop
    off the optical axis gets a centred principal point.
    """
    forward = np.array([
        (resolution / 2 - intrinsics.cx) / intrinsics.fx, -(resolution / 2 - intrinsics.cy) / intrinsics.fy, -1.0,
    ])  # fmt: skip
    back = -forward / np.linalg.norm(forward)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    return np.column_stack([right, np.cross(back, right), back])


def centred_view(image: UInt8, intrinsics: Intrinsics, rotation: Float64, focal: float) -> UInt8:
    """Warp a square image into the camera turned by `rotation` (see `centred_rotation`): `focal`, centred, same size.

    A photo goes on with its border beyond the image, a mask with 0.
    """
    resolution = len(image)
    samples = max(1, int(np.ceil(intrinsics.fx / focal - 0.25)))  # per pixel side, so that no pixel is left out
    fine = resolution * samples
    flip = np.diag([1.0, -1.0, -1.0])  # OpenGL to OpenCV camera axes
    K = np.array([[intrinsics.fx, 0, intrinsics.cx - 0.5], [0, intrinsics.fy, intrinsics.cy - 0.5], [0, 0, 1]])
    centred = np.array([[focal * samples, 0, fine / 2 - 0.5], [0, focal * samples, fine / 2 - 0.5], [0, 0, 1]])
    homography = K @ flip @ rotation @ flip @ np.linalg.inv(centred)  # new pixels to old ones
    warped: UInt8 = cv2.warpPerspective(
        image, homography, (fine, fine), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE if image.ndim == 3 else cv2.BORDER_CONSTANT, borderValue=0,
    )  # fmt: skip
    return shrink(warped, (resolution, resolution)) if samples > 1 else warped


def write_llff(folder: Path, dataset: Dataset, output: Path) -> None:
    """Write the dataset in `folder` as LLFF under `output`: images/, masks/ and poses_bounds.npy, views with weight.

    Readers of this layout take one focal length and a centred principal point for granted, so every view is turned
    to look through its own centre and brought to the shortest focal length of all. (Mildenhall et al. 2019, release
    code: N×17, a row is the 3×5 matrix [R | t | h w f], row major, R's columns [down, right, back] camera to world,
    then the near and far depth.)
    """
    for name in ("images", "masks"):
        (output / name).mkdir(parents=True, exist_ok=True)
    frames = [frame for frame in dataset.frames if frame.weight > 0]
    unit_to_reference = np.array(dataset.unit_to_reference)
    centre, scale = unit_to_reference[:3, 3], unit_to_reference[0, 0]
    half_diagonal = scale * float(np.linalg.norm(dataset.object_size_unit)) / 2
    focal = min(frame.intrinsics.fx for frame in frames)
    rows = []
    for frame in frames:
        rotation = centred_rotation(frame.intrinsics, dataset.resolution)
        for file in (frame.image, frame.mask):
            write_png(output / file, centred_view(read_image(folder / file), frame.intrinsics, rotation, focal))
        pose = camera_to_reference(frame, unit_to_reference)
        right, up, back = (pose[:3, :3] @ rotation).T
        hwf = [dataset.resolution, dataset.resolution, focal]
        matrix = np.column_stack([-up, right, back, pose[:3, 3], hwf])
        distance = float(np.linalg.norm(pose[:3, 3] - centre))
        near = max(distance - half_diagonal, 0.01 * distance)
        rows.append([*matrix.ravel(), near, distance + half_diagonal])
    np.save(output / "poses_bounds.npy", np.array(rows))
