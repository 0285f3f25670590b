import math
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from scan2twin.capture.models import (
    Anchor,
    App,
    CaptureHeader,
    Device,
    FrameRecord,
    Intrinsics,
    ObjectBox,
    Pose,
    Scale,
    TrackedAnchor,
)
from scan2twin.capture.writer import write_capture

MakeCapture = Callable[..., Path]

# The background of a shell ignores SIGINT, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def orbit_pose(angle: float) -> Pose:
    """Camera to world on a circle of radius 0.6 m, looking at the origin (OpenGL axes, +Y up)."""
    position = 0.6 * np.array([math.sin(angle), 0.3, math.cos(angle)])
    back = position / np.linalg.norm(position)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(back, right), back], axis=1)
    return Pose(p=position.tolist(), q=Rotation.from_matrix(R).as_quat().tolist())


@pytest.fixture
def make_capture(tmp_path: Path) -> MakeCapture:
    """Return a function that writes a small valid capture: an orbit of noise images round an anchor at the origin."""

    def make(name: str = "capture", frames: int = 10, size: tuple[int, int] = (48, 64)) -> Path:
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        width, height = size
        rng = np.random.default_rng(0)
        origin = Pose(p=[0.0, 0.0, 0.0], q=[0.0, 0.0, 0.0, 1.0])
        records = []
        for i in range(frames):
            pixels = rng.integers(40, 255, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"images/{i:06d}.jpg", quality=90)
            records.append(
                FrameRecord(
                    i=i,
                    file=f"images/{i:06d}.jpg",
                    t=0.5 * i,
                    width=width,
                    height=height,
                    intrinsics=Intrinsics(fx=60.0, fy=60.0, cx=width / 2, cy=height / 2),
                    pose_world=orbit_pose(2 * math.pi * i / frames),
                    anchor=TrackedAnchor(id="a0", tracked=True, p=origin.p, q=origin.q),
                    tracking="normal",
                )
            )
        header = CaptureHeader(
            capture_id="test-capture",
            name="Test",
            recorded_at=datetime(2026, 11, 20, 10, 11, tzinfo=UTC),
            app=App(name="tests", version="1"),
            device=Device(model="none", platform="none", tracker="arcore"),
            reference_anchor="a0",
            anchors=[Anchor(id="a0", role="object", pose_first=origin, pose_last=origin)],
            object=ObjectBox(center=[0.0, 0.0, 0.0], size=[0.2, 0.2, 0.2]),
            scale=Scale(metric=True, source="arcore"),
        )
        write_capture(folder, header, records)
        return folder

    return make
