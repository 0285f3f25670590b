"""The points of the object among those that structure from motion found, for reconstruct to hold its surface to."""

from pathlib import Path

import numpy as np

from preprocessing.crop import project
from preprocessing.images import read_image
from scan2twin.frames import Dataset

POINTS_FILE = "points.npz"
WITHIN = 0.8  # of the frames that see a point of the object, as many have it within their mask
BOX_MARGIN = 0.05  # unit-frame lengths that the object may reach beyond its box


def write_object_points(points: Path, dataset: Dataset, folder: Path) -> int:
    """Write to `folder`/points.npz those points of the refine_poses stage's file `points` that lie on the object.

    They are in the unit frame: `xyz` (N, 3) float32, `error_px` (N,) float32; `seen_by` (K,) and `seen` (K,) int32 say
    which frame (its index) sees which point. Masks are read from `folder`. Returns N.
    """
    with np.load(points) as arrays:
        reference, error = arrays["xyz"].astype(np.float64), arrays["error_px"]
        seen_by, seen = arrays["seen_by"], arrays["seen"]
    unit_to_reference = np.array(dataset.unit_to_reference)
    xyz = (reference - unit_to_reference[:3, 3]) / unit_to_reference[0, 0]
    votes, within = np.zeros(len(xyz)), np.zeros(len(xyz))
    for frame in dataset.frames:
        if frame.weight == 0:
            continue
        here = seen[seen_by == frame.index]
        pixels, depth = project(xyz[here], np.array(frame.camera_to_unit), frame.intrinsics)
        column, row = np.floor(pixels).astype(int).T
        inside = (depth > 0) & (column >= 0) & (column < dataset.resolution) & (row >= 0) & (row < dataset.resolution)
        mask = read_image(folder / frame.mask)
        votes[here] += 1
        within[here[inside]] += mask[row[inside], column[inside]] >= 128
    box = np.all(np.abs(xyz) < np.array(dataset.object_size_unit) / 2 + BOX_MARGIN, axis=1)
    kept = box & (votes > 0) & (within >= WITHIN * votes)
    number = np.cumsum(kept) - 1
    observed = kept[seen]
    np.savez_compressed(
        folder / POINTS_FILE, xyz=xyz[kept].astype(np.float32), error_px=error[kept],
        seen_by=seen_by[observed], seen=number[seen[observed]].astype(np.int32),
    )  # fmt: skip
    return int(kept.sum())
