"""Structure from known, noisy camera poses with pycolmap: features, matches, points, adjustment with position priors.

Reconstructions hold world-to-camera poses with OpenCV axes (+X right, +Y down, looks along +Z), as COLMAP does; this
module takes and gives `camera_to_reference` with OpenGL axes like the rest of the pipeline.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray

from preprocessing.parallel import usable_cores
from scan2twin.frames import PosedFrame

Array = NDArray[np.float64]

pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value  # its progress is ours to tell

OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0])
SEED = 0  # of every RANSAC, so that the same images give the same poses
COST_TOLERANCE = 1e-5  # an adjustment ends when a step lowers its cost by less than this share
RANSAC_MAX_ERROR_PX = 4.0  # for registering a frame against points, as COLMAP's mapper


@dataclass(frozen=True)
class Tolerance:
    """How far an observation may lie off and still belong to a point: by its ray, degrees, and in the image, pixels."""

    angle_deg: float
    reprojection_px: float


def match_frames(
    images: Path, frames: Sequence[PosedFrame], pairs: Sequence[tuple[int, int]], folder: Path, *,
    max_features: int, long_side: int, masks: Path | None = None,
) -> Path:  # fmt: skip
    """Find SIFT features in frames of at most `long_side` pixels, match the `pairs` of rows and verify the matches.

    `masks` is a folder with `<frame.file>.png` for every frame, 0 where no features are wanted. Matches that do not
    move in the image are dropped: in a turntable capture they are the background, which does not move with the
    object, and in a hand-held one dirt on the lens.

    Returns the path of the COLMAP database, in `folder`.
    """
    database = folder / "features.db"
    names = [frame.file for frame in frames]
    shared = len({frame.intrinsics.model_dump_json() + f"{frame.width}x{frame.height}" for frame in frames}) == 1
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_PINHOLE"
    if masks is not None:
        reader.mask_path = masks
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads = usable_cores()
    extraction.max_image_size = long_side
    extraction.sift.max_num_features = max_features
    mode = pycolmap.CameraMode.SINGLE if shared else pycolmap.CameraMode.PER_IMAGE
    pycolmap.Database.open(database).close()
    pycolmap.import_images(database, images, mode, names, reader)  # numbers them in this order; threads would race
    with pycolmap.Database.open(database) as opened:
        by_name = {frame.file: frame for frame in frames}
        for image in opened.read_all_images():
            camera = opened.read_camera(image.camera_id)
            intrinsics = by_name[image.name].intrinsics
            camera.params = [intrinsics.fx, intrinsics.cx, intrinsics.cy]
            camera.has_prior_focal_length = True
            opened.update_camera(camera)
    pycolmap.extract_features(database, images, names, mode, reader, extraction)
    pair_list = folder / "pairs.txt"
    pair_list.write_text("".join(f"{names[a]} {names[b]}\n" for a, b in pairs), encoding="utf-8")
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = pair_list
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = usable_cores()
    verification = pycolmap.TwoViewGeometryOptions()
    verification.filter_stationary_matches = True
    verification.ransac.random_seed = SEED
    pycolmap.match_image_pairs(database, matching, pairing, verification)
    return database


def stationary_share(database: Path, pairs: Sequence[tuple[int, int]], pixels: float) -> float:
    """Return the share of all matches, before they were verified, that move by less than `pixels` in the image.

    `pairs` are rows of the frames that `match_frames` was given. Seen from a camera that goes round an object only
    points on its very axis keep their place; from one that stands still the background does.
    """
    still = matched = 0
    with pycolmap.Database.open(database) as opened:
        ids = [image.image_id for image in opened.read_all_images()]  # in the frames' order
        keypoints = {id_: opened.read_keypoints(id_)[:, :2] for id_ in ids}
        for a, b in ((ids[one], ids[other]) for one, other in pairs):
            if not opened.exists_matches(a, b):
                continue
            matches = opened.read_matches(a, b)
            moved = np.linalg.norm(keypoints[a][matches[:, 0]] - keypoints[b][matches[:, 1]], axis=1)
            still, matched = still + int((moved < pixels).sum()), matched + len(moved)
    return still / max(matched, 1)


@dataclass(frozen=True)
class SparsePoints:
    """Points of the surface and the background that several frames see."""

    xyz: Array  # (N, 3), reference frame
    rgb: NDArray[np.uint8]  # (N, 3), sRGB, mean of the frames
    frames: NDArray[np.int32]  # (N,), how many frames see it
    error_px: Array  # (N,), mean reprojection error


@dataclass(frozen=True)
class Tracks:
    """Which frames see which points where: K observations."""

    frame: NDArray[np.int64]  # (K,), row of the frame
    point: NDArray[np.int64]  # (K,), number of the point, from 0
    xy: Array  # (K, 2), pixels
    scale: Array  # (K,), of the feature, pixels
    feature: NDArray[np.int64]  # (K,), number of the feature among those of its frame


class Adjustment:
    """Points and cameras of one capture, adjusted in rounds of triangulation and bundle adjustment."""

    def __init__(self, database: Path, frames: Sequence[PosedFrame], images: Path, folder: Path) -> None:
        self._database, self._images, self._folder = database, images, folder
        self._files = [frame.file for frame in frames]
        self._reconstruction = pycolmap.Reconstruction()
        with pycolmap.Database.open(database) as opened:
            for camera in opened.read_all_cameras():
                self._reconstruction.add_camera_with_trivial_rig(camera)
            stored = {image.name: image for image in opened.read_all_images()}
        self._ids = [stored[file].image_id for file in self._files]
        for frame in frames:
            image = pycolmap.Image(
                frame.file, image_id=stored[frame.file].image_id, camera_id=stored[frame.file].camera_id
            )
            self._reconstruction.add_image_with_trivial_frame(image, _camera_from_world(frame.camera_to_reference))

    def triangulate(self, tolerance: Tolerance) -> None:
        """Find points again from the current cameras."""
        options = pycolmap.IncrementalPipelineOptions()
        options.num_threads = 1  # as in `adjust`
        options.random_seed = options.triangulation.random_seed = SEED
        options.extract_colors = False
        options.triangulation.create_max_angle_error = tolerance.angle_deg
        options.triangulation.continue_max_angle_error = tolerance.angle_deg
        options.triangulation.merge_max_reproj_error = tolerance.reprojection_px
        options.triangulation.complete_max_reproj_error = tolerance.reprojection_px
        options.mapper.filter_max_reproj_error = tolerance.reprojection_px
        self._reconstruction = pycolmap.triangulate_points(
            self._reconstruction, self._database, self._images, self._folder, True, options
        )

    def adjust(
        self, positions: Array, sigma: float, rows: Sequence[int], *, refine_focal_length: bool,
        without_prior: Collection[int] = (),
    ) -> None:  # fmt: skip
        """Adjust the cameras of `rows` and all points, with `positions` (N × 3, ± `sigma` an axis) as priors.

        The priors keep the scale and the frame: without them rings of views that share few points float against
        each other while the reprojection error falls. The cameras `without_prior` follow their points alone.
        """
        config = pycolmap.BundleAdjustmentConfig()
        for row in rows:
            config.add_image(self._ids[row])
        options = pycolmap.BundleAdjustmentOptions()
        options.refine_focal_length = refine_focal_length and self._reconstruction.num_cameras() == 1
        options.refine_extra_params = False
        options.print_summary = False
        options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = 1.0  # pixels
        options.ceres.solver_options.function_tolerance = COST_TOLERANCE
        options.ceres.solver_options.num_threads = 1  # sums in one order: the same poses every time
        priors = []
        for row in (row for row in rows if row not in without_prior):
            prior = pycolmap.PosePrior()
            prior.corr_data_id = self._reconstruction.images[self._ids[row]].data_id
            prior.position = positions[row]
            prior.position_covariance = np.eye(3) * sigma**2
            prior.coordinate_system = pycolmap.PosePriorCoordinateSystem.CARTESIAN
            priors.append(prior)
        prior_options = pycolmap.PosePriorBundleAdjustmentOptions()
        prior_options.alignment_ransac.random_seed = SEED
        adjuster = pycolmap.create_pose_prior_bundle_adjuster(
            options, prior_options, config, priors, self._reconstruction
        )
        adjuster.solve()

    def register(self, row: int, minimum: int) -> bool:
        """Find the camera of `row` anew from the points its matches in other frames have; tell whether that worked.

        Needs `minimum` points that agree (perspective-n-point with RANSAC).
        """
        image = self._reconstruction.images[self._ids[row]]
        points: dict[int, Array] = {}
        with pycolmap.Database.open(self._database) as opened:
            for other in self._ids:
                if other == image.image_id or not opened.exists_two_view_geometry(image.image_id, other):
                    continue
                matches = opened.read_two_view_geometry(image.image_id, other).inlier_matches
                seen = self._reconstruction.images[other].points2D
                for own_index, other_index in matches:
                    if seen[other_index].has_point3D():
                        points[int(own_index)] = self._reconstruction.points3D[seen[other_index].point3D_id].xyz
        if len(points) < minimum:
            return False
        options = pycolmap.AbsolutePoseEstimationOptions()
        options.ransac.max_error = RANSAC_MAX_ERROR_PX
        options.ransac.random_seed = SEED
        found = pycolmap.estimate_and_refine_absolute_pose(
            np.array([image.points2D[index].xy for index in points]), np.array(list(points.values())),
            self._reconstruction.cameras[image.camera_id], options,
        )  # fmt: skip
        if found is None or found["num_inliers"] < minimum:
            return False
        self._reconstruction.frame(image.frame_id).rig_from_world = found["cam_from_world"]
        return True

    def poses(self) -> Array:
        """Return camera_to_reference of every row, N × 4 × 4, OpenGL axes."""
        poses = np.tile(np.eye(4), (len(self._ids), 1, 1))
        for pose, image_id in zip(poses, self._ids, strict=True):
            world_from_camera = self._reconstruction.images[image_id].cam_from_world().inverse()
            pose[:3, :3] = world_from_camera.rotation.matrix() @ OPENGL_TO_OPENCV
            pose[:3, 3] = world_from_camera.translation
        return poses

    def focal_length(self, row: int) -> float:
        """Return the focal length of the row's camera, pixels."""
        camera_id = self._reconstruction.images[self._ids[row]].camera_id
        return float(self._reconstruction.cameras[camera_id].params[0])

    def points(self, images: Path, at_least: int) -> SparsePoints:
        """Return the points that `at_least` frames see, with their colours in `images`."""
        self._reconstruction.extract_colors_for_all_images(images)
        points = [point for _, point in sorted(self._reconstruction.points3D.items())]
        points = [point for point in points if point.track.length() >= at_least]
        return SparsePoints(
            xyz=np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
            rgb=np.array([point.color for point in points], np.uint8).reshape(-1, 3),
            frames=np.array([point.track.length() for point in points], np.int32),
            error_px=np.array([point.error for point in points], np.float64),
        )

    def tracks(self, at_least: int) -> Tracks:
        """Return the observations of the points that `at_least` frames see; the points are numbered as in `points`."""
        points = [
            id_ for id_, point in sorted(self._reconstruction.points3D.items()) if point.track.length() >= at_least
        ]
        number = {id_: k for k, id_ in enumerate(points)}
        observed: list[tuple[int, int, int, Array]] = []
        with pycolmap.Database.open(self._database) as opened:
            for row, image_id in enumerate(self._ids):
                keypoints = opened.read_keypoints(image_id)  # (F, 6): place, and the affine shape of the feature
                seen = self._reconstruction.images[image_id].points2D
                observed += [
                    (row, number[point.point3D_id], k, keypoints[k])
                    for k, point in enumerate(seen)
                    if point.has_point3D() and point.point3D_id in number
                ]
        shape = np.array([keypoint for _, _, _, keypoint in observed], np.float64).reshape(-1, 6)
        return Tracks(
            frame=np.array([row for row, _, _, _ in observed], np.int64),
            point=np.array([point for _, point, _, _ in observed], np.int64),
            xy=shape[:, :2],
            scale=np.sqrt(np.abs(shape[:, 2] * shape[:, 5] - shape[:, 3] * shape[:, 4])),
            feature=np.array([feature for _, _, feature, _ in observed], np.int64),
        )

    def descriptors(self, tracks: Tracks) -> NDArray[np.float32]:
        """Return the descriptors (K, 128), of unit length, of the features that `tracks` observe."""
        found = np.zeros((len(tracks.frame), 128), np.float32)
        with pycolmap.Database.open(self._database) as opened:
            for row, image_id in enumerate(self._ids):
                here = tracks.frame == row
                found[here] = opened.read_descriptors(image_id).data[tracks.feature[here]]
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return found

    def reprojection_errors(self) -> list[Array]:
        """Return for every row the distances, in pixels, between its features and the points they see."""
        points: Mapping[int, Any] = self._reconstruction.points3D
        errors = []
        for image_id in self._ids:
            image = self._reconstruction.images[image_id]
            observed = [point for point in image.points2D if point.has_point3D()]
            if not observed:
                errors.append(np.empty(0))
                continue
            xyz = np.array([points[point.point3D_id].xyz for point in observed])
            matrix = image.cam_from_world().matrix()
            in_camera = xyz @ matrix[:, :3].T + matrix[:, 3]
            focal, cx, cy = self._reconstruction.cameras[image.camera_id].params
            projected = focal * in_camera[:, :2] / in_camera[:, 2:] + [cx, cy]
            errors.append(np.linalg.norm(projected - np.array([point.xy for point in observed]), axis=1))
        return errors


def _camera_from_world(camera_to_reference: Sequence[Sequence[float]]) -> Any:
    matrix = np.asarray(camera_to_reference)
    rotation = (matrix[:3, :3] @ OPENGL_TO_OPENCV).T
    return pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ matrix[:3, 3])
