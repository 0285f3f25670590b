"""A small capture with known truth, drawn here: a painted box on a patterned floor, seen by a phone that goes round.

For who has no capture with truth at hand. The tracker's world frame jumps and its poses are noisy, as ARCore's are, and
some frames are blurred. Every pixel's ray is cut with the floor and the box; nothing of the pipeline is in it.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import trimesh
from numpy.typing import NDArray
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

Array = NDArray[np.float64]
UInt8 = NDArray[np.uint8]

SIZE = (0.20, 0.26, 0.14)  # of the box, metres; it stands on the origin
WIDTH, HEIGHT, FOCAL = 300, 400, 370.0  # pixels
FRAMES, RADIUS = 40, 0.62  # metres from the box's middle
HEIGHTS = (0.28, 0.52)  # of the two rounds above the floor, metres
SUPERSAMPLING = 2  # rays along each side of a pixel
TEXTURE, FLOOR_SIZE = 512, 3.0  # pixels; metres
POSE_NOISE_M, POSE_NOISE_DEG = 0.0012, 0.15  # an axis, as the tracker of a phone has it
JITTER_M, JITTER_DEG = 0.0005, 0.05  # of the anchor
JUMPS = {13: 0.08, 27: 0.10}  # frames before which the world frame is corrected, by so many metres
BLURRED = (9, 30)
PAINT = ((214, 84, 62), (66, 120, 190), (236, 190, 70), (80, 150, 96), (190, 96, 170), (120, 120, 120))  # RGB a face


def make_synthetic_capture(folder: Path, turned: Array | None = None) -> Path:
    """Write `capture/` and `truth/` into `folder`, as `preprocessing.benchmark` reads them; return it.

    Two more rounds follow if the box is `turned` over: how it then stands on the floor (4×4, box to floor). They have
    an anchor of their own, somewhere near. Their true poses too are relative to the box as it stood at first.
    """
    rng = np.random.default_rng(0)
    for name in ("capture/images", "truth/masks"):
        (folder / name).mkdir(parents=True)
    intrinsics = Intrinsics(fx=FOCAL, fy=FOCAL, cx=WIDTH / 2 - 3.4, cy=HEIGHT / 2 + 4.2)
    paint, floor = paint_and_floor(rng)
    box = ObjectBox(center=[0.0, SIZE[1] / 2, 0.0], size=list(SIZE))
    world_from_floor = np.eye(4)
    records, truth = [], []
    anchors: dict[str, list[Pose]] = {}
    passes = [("a0", np.eye(4), np.eye(4))] + ([] if turned is None else [("a1", _near(rng, 0.05, 0.0), turned)])
    shots = [(*one, camera) for one in passes for camera in orbit()]
    for i, (anchor_id, floor_from_anchor, floor_from_box, camera) in enumerate(shots):
        rgb, mask = draw(camera, intrinsics, paint, floor, floor_from_box)
        if i in BLURRED:
            rgb = cv2.blur(rgb, (31, 1))
        name = f"{i:06d}"
        Image.fromarray(rgb).save(folder / f"capture/images/{name}.jpg", quality=92)
        Image.fromarray(mask).save(folder / f"truth/masks/{name}.png")
        if i in JUMPS:
            world_from_floor = _near(rng, JUMPS[i], 2.5) @ world_from_floor
        anchor = world_from_floor @ floor_from_anchor @ _near(rng, JITTER_M * np.sqrt(3), JITTER_DEG * np.sqrt(3))
        seen = world_from_floor @ camera @ _near(rng, POSE_NOISE_M * np.sqrt(3), POSE_NOISE_DEG * np.sqrt(3))
        anchors.setdefault(anchor_id, []).append(_pose(anchor))
        records.append(
            FrameRecord(
                i=i, file=f"images/{name}.jpg", t=0.5 * i, width=WIDTH, height=HEIGHT, intrinsics=intrinsics,
                pose_world=_pose(seen), tracking="normal",
                anchor=TrackedAnchor(id=anchor_id, tracked=True, **_pose(anchor).model_dump()),
            )
        )  # fmt: skip
        truth.append(
            {"i": i, "camera_to_anchor": (np.linalg.inv(floor_from_box) @ camera).tolist(), "blurred": i in BLURRED}
        )
    header = CaptureHeader(
        capture_id="painted-box", name="A painted box, drawn", recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        app=App(name="scan2twin", version="1"), device=Device(model="drawn", platform="none", tracker="arcore"),
        reference_anchor="a0", object=box, scale=Scale(metric=True, source="drawn"),
        anchors=[
            Anchor(id=id_, role="object", pose_first=poses[0], pose_last=poses[-1]) for id_, poses in anchors.items()
        ],
    )  # fmt: skip
    write_capture(folder / "capture", header, records)
    mesh = trimesh.creation.box(extents=SIZE, transform=trimesh.transformations.translation_matrix(box.center))
    mesh.export(folder / "truth/mesh.obj")
    poses = {"anchor_to_mesh_world": np.eye(4).tolist(), "frames": truth}
    (folder / "truth/poses.json").write_text(json.dumps(poses))
    return folder


def paint_and_floor(rng: np.random.Generator) -> tuple[list[UInt8], UInt8]:
    """Return the textures of the box's six faces, and the floor's."""
    paint = [_pattern(rng, np.array(colour), contrast=90) for colour in PAINT]
    return paint, _pattern(rng, np.array([150, 145, 138]), contrast=30)


def orbit() -> Array:
    """Return the true camera_to_anchor (FRAMES × 4 × 4, OpenGL axes) of two rounds that look at the box's middle."""
    k = np.arange(FRAMES)
    half = FRAMES // 2
    angle, height = 2 * np.pi * (k % half + 0.5 * (k // half)) / half, np.array(HEIGHTS)[k // half]
    centre = np.array([0, SIZE[1] / 2, 0])
    position = np.stack([RADIUS * np.sin(angle), height, RADIUS * np.cos(angle)], axis=1)
    back = (position - centre) / np.linalg.norm(position - centre, axis=1, keepdims=True)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, :3, :3] = np.stack([right, np.cross(back, right), back], axis=2)
    poses[:, :3, 3] = position
    return poses


def draw(
    camera: Array, intrinsics: Intrinsics, paint: list[UInt8], floor: UInt8, box_to_floor: Array
) -> tuple[UInt8, UInt8]:
    """Return the photo (H, W, 3) and the box's mask (H, W) from `camera` (4×4, camera to floor, OpenGL axes).

    `box_to_floor` (4×4, rigid) is how the box, whose own frame has it on the origin, stands on the floor.
    Rays against slabs (Kay and Kajiya 1986) and the plane y = 0; a wall of one colour beyond the floor.
    """
    width, height = WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING
    u, v = np.meshgrid((np.arange(width) + 0.5) / SUPERSAMPLING, (np.arange(height) + 0.5) / SUPERSAMPLING)
    K = intrinsics
    in_camera = np.stack([(u - K.cx) / K.fx, -(v - K.cy) / K.fy, -np.ones_like(u)], axis=2)
    rays = in_camera @ camera[:3, :3].T
    rays[np.abs(rays) < 1e-12] = 1e-12
    to_floor = -camera[1, 3] / rays[..., 1]
    ground = camera[:3, 3] + to_floor[..., None] * rays
    on_floor = (to_floor > 0) & (np.abs(ground[..., [0, 2]]).max(axis=2) < FLOOR_SIZE / 2)
    rgb = np.full((height, width, 3), (172, 178, 184), np.uint8)
    rgb[on_floor] = _sample(floor, ground[..., [0, 2]] / FLOOR_SIZE + 0.5)[on_floor]

    camera = np.linalg.inv(box_to_floor) @ camera
    rays = in_camera @ camera[:3, :3].T
    rays[np.abs(rays) < 1e-12] = 1e-12
    low, high = np.array([-SIZE[0] / 2, 0, -SIZE[2] / 2]), np.array([SIZE[0] / 2, SIZE[1], SIZE[2] / 2])
    one, other = (low - camera[:3, 3]) / rays, (high - camera[:3, 3]) / rays
    enter, leave = np.minimum(one, other), np.maximum(one, other)
    axis, distance = enter.argmax(axis=2), enter.max(axis=2)
    hit = (distance < leave.min(axis=2)) & (distance > 0)
    point = camera[:3, 3] + distance[..., None] * rays
    for face, texture in enumerate(paint):
        along = face // 2
        on_face = hit & (axis == along) & ((rays[..., along] < 0) == bool(face % 2))
        if on_face.any():
            across = [k for k in range(3) if k != along]
            rgb[on_face] = _sample(texture, (point[..., across] - low[across]) / (high - low)[across])[on_face]
    size = (WIDTH, HEIGHT)
    mask = cv2.resize(hit.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), mask


def _sample(texture: UInt8, uv: Array) -> UInt8:
    """Return the texture's colours (H, W, 3) at `uv` (H, W, 2), 0 to 1; black beyond."""
    at = (uv * (TEXTURE - 1)).astype(np.float32)
    samples: UInt8 = cv2.remap(texture, at[..., 0].copy(), at[..., 1].copy(), cv2.INTER_LINEAR)
    return samples


def _pattern(rng: np.random.Generator, colour: NDArray[np.int_], contrast: float) -> UInt8:
    """Return a texture of soft spots of three sizes round `colour`."""
    spots = np.zeros((TEXTURE, TEXTURE, 1))
    for cells in (16, 48, 128):
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        spots[..., 0] += cv2.resize(coarse, (TEXTURE, TEXTURE), interpolation=cv2.INTER_CUBIC) / 3
    return np.clip(colour + contrast * spots, 0, 255).astype(np.uint8)


def _near(rng: np.random.Generator, metres: float, degrees: float) -> Array:
    """Return a rigid 4×4 change whose parts have normal noise of these root mean square lengths."""
    change = np.eye(4)
    change[:3, :3] = Rotation.from_rotvec(np.radians(degrees) / np.sqrt(3) * rng.normal(size=3)).as_matrix()
    change[:3, 3] = metres / np.sqrt(3) * rng.normal(size=3)
    return change


def _pose(matrix: Array) -> Pose:
    return Pose(p=matrix[:3, 3].tolist(), q=Rotation.from_matrix(matrix[:3, :3]).as_quat().tolist())
