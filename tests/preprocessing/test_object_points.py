import cv2
import numpy as np

from preprocessing.object_points import write_object_points
from scan2twin.capture.models import Intrinsics
from scan2twin.frames import Dataset, DatasetFrame

SIDE, FOCAL, CENTRE, SCALE = 64, 80.0, np.array([1.0, 2.0, 3.0]), 0.5


def test_points_of_the_object_are_kept_in_the_unit_frame_with_what_sees_them(tmp_path):
    (tmp_path / "masks").mkdir()
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[16:48, 16:48] = 255
    frames = []
    for index, weight in ((3, 1.0), (7, 1.0), (9, 0.0)):
        cv2.imwrite(str(tmp_path / f"masks/{index}.png"), mask)
        camera = np.eye(4)
        camera[:3, 3] = [0.1 * (index - 5), 0, 2]  # looks along -Z, at the box
        frames.append(
            DatasetFrame(
                index=index, image=f"images/{index}.png", mask=f"masks/{index}.png", camera_to_unit=camera.tolist(),
                intrinsics=Intrinsics(fx=FOCAL, fy=FOCAL, cx=SIDE / 2, cy=SIDE / 2), split="train", weight=weight,
            )
        )  # fmt: skip
    unit_to_reference = np.diag([SCALE, SCALE, SCALE, 1.0])
    unit_to_reference[:3, 3] = CENTRE
    dataset = Dataset(
        capture_id="box", resolution=SIDE, metric=True, unit_to_reference=unit_to_reference.tolist(),
        object_size_unit=[1.0, 0.8, 0.8], frames=frames,
    )  # fmt: skip
    unit = np.array([
        [0.0, 0.0, -0.6],  # behind the box: not of the object
        [0.1, 0.1, 0.1],
        [0.48, 0.0, 0.1],  # in the box, but one of two views has it beyond its mask
        [-0.2, 0.1, -0.2],
        [0.0, -0.1, 0.2],  # only a view without weight sees it
    ])  # fmt: skip
    np.savez(
        tmp_path / "sfm.npz", xyz=(unit * SCALE + CENTRE).astype(np.float32), error_px=np.arange(5, dtype=np.float32),
        seen_by=np.array([3, 7, 3, 7, 3, 7, 3, 9, 9]), seen=np.array([0, 0, 1, 1, 2, 2, 3, 3, 4]),
    )  # fmt: skip
    assert write_object_points(tmp_path / "sfm.npz", dataset, tmp_path) == 2
    found = np.load(tmp_path / "points.npz")
    np.testing.assert_allclose(found["xyz"], unit[[1, 3]], atol=1e-6)
    np.testing.assert_array_equal(found["error_px"], [1, 3])
    assert sorted(zip(found["seen"].tolist(), found["seen_by"].tolist(), strict=True)) == [
        (0, 3),
        (0, 7),
        (1, 3),
        (1, 9),
    ]
