"""A small scene with known cameras, and every tool's files of it, written from that tool's own documentation."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from PIL import Image
from scipy.spatial.transform import Rotation

from preprocessing.lens import distort
from scan2twin.capture.reader import Capture

SIZE = (64, 48)
K = (70.0, 71.0, 33.0, 23.5)  # fx fy cx cy
POINTS = np.random.default_rng(0).uniform(-0.25, 0.25, (20, 3))
Y_UP_TO_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL camera axes <-> OpenCV's


def orbit(count: int = 8) -> np.ndarray:
    """Return (N, 4, 4) camera-to-world, OpenGL axes, +Y up, round the origin at two heights."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for k, pose in enumerate(poses):
        angle = 2 * np.pi * k / count
        position = np.array([2 * np.cos(angle), 0.8 + 0.3 * (k % 2), 2 * np.sin(angle)])
        back = position / np.linalg.norm(position)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        pose[:3] = np.column_stack([right, np.cross(back, right), back, position])
    return poses


POSES = orbit()


def photo(k: int) -> Image.Image:
    pixels = np.random.default_rng(k).integers(30, 230, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def camera_points(pose: np.ndarray) -> np.ndarray:
    """Return POINTS in OpenCV camera axes of a camera-to-world OpenGL pose."""
    return ((POINTS - pose[:3, 3]) @ pose[:3, :3]) @ FLIP[:3, :3]


def pixels_of(
    pose: np.ndarray, k: tuple[float, ...] = K, model: str = "opencv", lens: tuple[float, ...] = ()
) -> np.ndarray:
    """Return the pixels (N, 2) of POINTS."""
    points = camera_points(pose)
    return distort(points[:, :2] / points[:, 2:], model, lens) * k[:2] + k[2:]


def reprojected(capture: Capture) -> np.ndarray:
    """Return the pixels (F, N, 2) of POINTS by an imported capture, its cameras turned to lie on POSES."""
    world, _ = Rotation.align_vectors([frame.pose_world.p for frame in capture.frames], POSES[:, :3, 3])
    camera = capture.document.camera
    found = []
    for frame in capture.frames:
        pose = np.eye(4)
        pose[:3, :3] = (world.inv() * Rotation.from_quat(frame.pose_world.q)).as_matrix()
        pose[:3, 3] = world.inv().apply(frame.pose_world.p)
        i = frame.intrinsics
        lens = frame.distortion or (camera.distortion if camera else None)
        found.append(
            pixels_of(pose, (i.fx, i.fy, i.cx, i.cy), lens.model if lens else "opencv", tuple(lens.k if lens else ()))
        )
    return np.array(found)


@dataclass
class Written:
    """A scan as written, and where its tool would project POINTS: (F, N, 2) pixels of the stored photos."""

    path: Path
    pixels: np.ndarray


def _plain(model: str = "opencv", lens: tuple[float, ...] = ()) -> np.ndarray:
    return np.array([pixels_of(pose, K, model, lens) for pose in POSES])


def nerfstudio(folder: Path) -> Written:
    (folder / "images").mkdir(parents=True)
    lens = {"k1": 0.05, "k2": -0.03, "p1": 0.001, "p2": -0.002}
    frames = []
    for k, pose in enumerate(POSES):
        photo(k).save(folder / f"images/frame_{k:05d}.jpg")
        frames.append(
            {"file_path": f"./images/frame_{k:05d}.jpg", "transform_matrix": (Y_UP_TO_Z_UP @ pose).tolist(), "extra": 1}
        )
    frames.append({"file_path": "images/gone.jpg", "transform_matrix": np.eye(4).tolist()})
    top = {"camera_model": "OPENCV", "fl_x": K[0], "fl_y": K[1], "cx": K[2], "cy": K[3], "w": SIZE[0], "h": SIZE[1]}
    (folder / "transforms.json").write_text(json.dumps({**top, **lens, "aabb_scale": 4, "frames": frames}))
    return Written(folder, _plain(lens=(0.05, -0.03, 0.001, -0.002)))


def nerfcapture(folder: Path) -> Written:
    """+Y up, cameras in the frames, names without suffix, and here a different focal length a frame."""
    (folder / "images").mkdir(parents=True)
    frames, pixels = [], []
    for k, pose in enumerate(POSES):
        photo(k).save(folder / f"images/{k}.png")
        fx, fy = K[0] + k, K[1] + k
        frames.append(
            {"file_path": f"images/{k}", "transform_matrix": pose.tolist(), "fl_x": fx, "fl_y": fy, "cx": K[2],
             "cy": K[3], "w": SIZE[0], "h": SIZE[1]}
        )  # fmt: skip
        pixels.append(pixels_of(pose, (fx, fy, *K[2:])))
    (folder / "transforms.json").write_text(json.dumps({"frames": frames}))
    return Written(folder, np.array(pixels))


def blender(folder: Path) -> Written:
    (folder / "train").mkdir(parents=True)
    angle = 2 * np.arctan(SIZE[0] / 2 / 70.0)
    frames = []
    for k, pose in enumerate(POSES):
        photo(k).convert("RGBA").save(folder / f"train/r_{k}.png")
        frames.append(
            {"file_path": f"./train/r_{k}", "rotation": 0.01, "transform_matrix": (Y_UP_TO_Z_UP @ pose).tolist()}
        )
    for split, part in (("train", frames[:6]), ("test", frames[6:])):
        (folder / f"transforms_{split}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": part}))
    k = (70.0, 70.0, SIZE[0] / 2, SIZE[1] / 2)
    return Written(folder, np.array([pixels_of(pose, k) for pose in POSES]))


def fisheye(folder: Path) -> Written:
    written = nerfstudio(folder)
    document = json.loads((folder / "transforms.json").read_text())
    document |= {"camera_model": "OPENCV_FISHEYE", "k1": 0.03, "k2": -0.01, "k3": 0.004, "k4": -0.002}
    (folder / "transforms.json").write_text(json.dumps(document))
    return Written(written.path, _plain("opencv_fisheye", (0.03, -0.01, 0.004, -0.002)))


def polycam(folder: Path, prefix: str = "corrected_") -> Written:
    for name in ("images", "cameras"):
        (folder / "keyframes" / f"{prefix}{name}").mkdir(parents=True)
    for k, pose in enumerate(POSES):
        stem = str(99_000_000 + 3_000_000 * k)  # microseconds: not all of one length
        photo(k).save(folder / f"keyframes/{prefix}images/{stem}.jpg")
        camera = {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}
        camera |= dict(zip(("fx", "fy", "cx", "cy"), K, strict=True))
        camera |= {"width": SIZE[0], "height": SIZE[1], "blur_score": 100.0, "timestamp": int(stem)}
        (folder / f"keyframes/{prefix}cameras/{stem}.json").write_text(json.dumps(camera))
    return Written(folder, _plain())


def record3d(folder: Path) -> Written:
    folder.mkdir(parents=True)
    path = folder / "walk.r3d"
    poses = [[*Rotation.from_matrix(pose[:3, :3]).as_quat(), *pose[:3, 3]] for pose in POSES]
    metadata = {"w": SIZE[0], "h": SIZE[1], "fps": 30, "dw": 8, "dh": 6, "poses": poses}
    metadata["K"] = [K[0], 0, 0, 0, K[1], 0, K[2], K[3], 1]  # column by column
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata", json.dumps(metadata))
        for k in range(len(POSES)):
            photo(k).save(folder / "photo.jpg")
            archive.write(folder / "photo.jpg", f"rgbd/{k}.jpg")
            archive.writestr(f"rgbd/{k}.depth", b"lzfse")
    (folder / "photo.jpg").unlink()
    return Written(path, _plain())


def stray(folder: Path) -> Written:
    folder.mkdir(parents=True)
    video = cv2.VideoWriter(str(folder / "rgb.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 30, SIZE)
    rows = ["timestamp, frame, x, y, z, qx, qy, qz, qw"]
    for k, pose in enumerate(POSES):
        video.write(np.full((SIZE[1], SIZE[0], 3), 20 + 25 * k, np.uint8))
        quaternion = Rotation.from_matrix((pose @ FLIP)[:3, :3]).as_quat()
        rows.append(", ".join(map(repr, map(float, [100 + k / 30, k, *pose[:3, 3], *quaternion]))))
    video.release()
    (folder / "odometry.csv").write_text("\n".join(rows) + "\n")
    (folder / "camera_matrix.csv").write_text(f"{K[0]}, 0, {K[2]}\n0, {K[1]}, {K[3]}\n0, 0, 1\n")
    return Written(folder, _plain())


COLMAP_LENS = {  # COLMAP's model -> its parameters after f (or fx fy) cx cy
    "PINHOLE": [],
    "SIMPLE_RADIAL": [0.05],
    "RADIAL": [0.05, -0.02],
    "OPENCV": [0.05, -0.02, 0.001, -0.002],
    "FULL_OPENCV": [0.05, -0.02, 0.001, -0.002, 0.01, 0.02, -0.01, 0.005],
    "OPENCV_FISHEYE": [0.03, -0.01, 0.004, -0.002],
    "THIN_PRISM_FISHEYE": [0.03, -0.01, 0.001, -0.002, 0.004, -0.002, 0.001, -0.001],
    "FOV": [0.6],
}


def colmap(folder: Path, model: str = "OPENCV", *, binary: bool = True) -> Written:
    """Written by pycolmap; the pixels are its own camera's too."""
    (folder / "images").mkdir(parents=True)
    (folder / "sparse" / "0").mkdir(parents=True)
    focal = [K[0]] if model in ("SIMPLE_RADIAL", "RADIAL") else [K[0], K[1]]
    camera = pycolmap.Camera(
        model=model, width=SIZE[0], height=SIZE[1], params=[*focal, K[2], K[3], *COLMAP_LENS[model]], camera_id=1
    )
    reconstruction = pycolmap.Reconstruction()
    reconstruction.add_camera_with_trivial_rig(camera)
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("xz", [70, 20], degrees=True).as_matrix()
    pixels = []
    for k, pose in enumerate(POSES):
        photo(k).save(folder / f"images/IMG_{k}.png")
        world_to_camera = np.linalg.inv(tilt @ pose @ FLIP)
        image = pycolmap.Image(name=f"IMG_{k}.png", camera_id=1, image_id=k + 1)
        image.points2D = pycolmap.Point2DList([pycolmap.Point2D(np.array([1.0, 2.0]))] * (k % 3))
        reconstruction.add_image_with_trivial_frame(
            image, pycolmap.Rigid3d(pycolmap.Rotation3d(world_to_camera[:3, :3]), world_to_camera[:3, 3])
        )
        pixels.append(camera.img_from_cam(camera_points(pose)))
    write = reconstruction.write_binary if binary else reconstruction.write_text
    write(folder / "sparse" / "0")
    return Written(folder, np.array(pixels))


def colmap_text(folder: Path) -> Written:
    return colmap(folder, binary=False)


def llff(folder: Path) -> Written:
    (folder / "images").mkdir(parents=True)
    rows = []
    for k, pose in enumerate(POSES):
        photo(k).save(folder / f"images/IMG_{k}.png")
        right, up, back, position = pose[:3].T
        rows.append([*np.column_stack([-up, right, back, position, [SIZE[1], SIZE[0], 70.0]]).ravel(), 1.0, 3.0])
    np.save(folder / "poses_bounds.npy", np.array(rows))
    k = (70.0, 70.0, SIZE[0] / 2, SIZE[1] / 2)
    return Written(folder, np.array([pixels_of(pose, k) for pose in POSES]))


WRITERS = {
    "transforms.json": nerfstudio, "NeRFCapture": nerfcapture, "Blender": blender, "fisheye": fisheye,
    "Polycam": polycam, "Record3D": record3d, "Stray Scanner": stray, "COLMAP": colmap, "COLMAP text": colmap_text,
    "LLFF": llff,
}  # fmt: skip
