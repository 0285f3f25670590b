"""Lens models: where a direction falls in the raw image, and which direction a raw pixel looks in.

Points are (N, 2) float64 in normalised coordinates: (x/z, y/z) of the camera's ray (OpenCV axes: +X right, +Y down)
on the ideal side, ((u - cx) / fx, (v - cy) / fy) on the raw side. The models and the order of their coefficients:

`opencv`: k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [τx τy]]]], OpenCV's calib module; COLMAP's SIMPLE_RADIAL (k1),
    RADIAL (k1 k2), OPENCV and FULL_OPENCV are its shorter forms.
`opencv_fisheye`: k1 k2 k3 k4, Kannala & Brandt 2006 as in OpenCV's fisheye module: the image radius is
    θ (1 + k1 θ² + k2 θ⁴ + k3 θ⁶ + k4 θ⁸) for a ray at the angle θ to the optical axis; COLMAP's OPENCV_FISHEYE,
    SIMPLE_RADIAL_FISHEYE, RADIAL_FISHEYE.
`thin_prism_fisheye`: k1 k2 p1 p2 k3 k4 sx1 sy1, COLMAP's order: radial, tangential and thin-prism terms on θ.
`fov`: ω, Devernay & Faugeras 2001: the image radius is atan(2 r tan(ω/2)) / ω.
"""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

FISHEYE = ("opencv_fisheye", "thin_prism_fisheye")
MAX_ANGLE = np.radians(80.0)  # to the optical axis; rays beyond are taken as this far out: no flat image holds them
NEWTON_STEPS = 30
CONVERGED = 1e-9  # of normalised coordinates: a millionth of a pixel
DIFFERENCE = 1e-6  # step of the central differences, normalised coordinates
PATH = np.linspace(0.1, 1, 10)  # where between the axis and a point the model is looked at for folds


def distort(points: Float64, model: str, k: Sequence[float]) -> Float64:
    """Map ideal points to where the lens puts them; no coefficients are no distortion (but see the fisheyes' θ)."""
    return _bend(_to_chart(points, model, k), model, k)


def undistort(points: Float64, model: str, k: Sequence[float]) -> Float64:
    """Map raw points back to ideal ones; NaN where the model cannot be undone.

    Newton's method on `distort`. A polynomial that turns back on itself between the axis and the point shows one
    raw point of several directions, and so cannot be undone either.
    """
    found = points.copy()
    with np.errstate(all="ignore"):  # a model that cannot be undone runs away; the checks below see that
        for _ in range(NEWTON_STEPS):
            miss = _bend(found, model, k) - points
            if np.abs(miss).max() < CONVERGED:
                break
            (a, b), (c, d) = _jacobian(found, model, k).transpose(1, 2, 0)
            found = found - np.column_stack([d * miss[:, 0] - b * miss[:, 1], a * miss[:, 1] - c * miss[:, 0]]) / (
                a * d - b * c
            )[:, None]  # fmt: skip
        undone = np.abs(_bend(found, model, k) - points).max(axis=1) < 1000 * CONVERGED
        for share in PATH:
            undone &= np.linalg.det(_jacobian(share * found, model, k)) > 0
        return np.where(undone[:, None], _from_chart(found, model, k), np.nan)


def _to_chart(points: Float64, model: str, k: Sequence[float]) -> Float64:
    """Turn x/z, y/z into the coordinates in which the model is a small bend: angles, for the fisheyes."""
    if model == "fov":
        return _scaled(points, lambda radius: np.arctan(radius * 2 * np.tan(k[0] / 2)))
    return _scaled(points, np.arctan) if model in FISHEYE else points


def _from_chart(points: Float64, model: str, k: Sequence[float]) -> Float64:
    if model == "fov":
        widest = np.arctan(np.tan(MAX_ANGLE) * 2 * np.tan(k[0] / 2))
        return _scaled(points, lambda radius: np.tan(np.minimum(radius, widest)) / (2 * np.tan(k[0] / 2)))
    return _scaled(points, lambda theta: np.tan(np.minimum(theta, MAX_ANGLE))) if model in FISHEYE else points


def _scaled(points: Float64, function: Callable[[Float64], Float64]) -> Float64:
    """Change each point's radius by `function`."""
    radius = np.hypot(points[:, 0], points[:, 1])
    safe = np.maximum(radius, 1e-12)  # all charts are straight at the axis
    return points * (function(safe) / safe)[:, None]


def _bend(points: Float64, model: str, k: Sequence[float]) -> Float64:
    """Apply the model in its chart."""
    if not k:
        return points
    if model == "fov":
        return points / k[0]
    if model == "opencv":
        rays = np.column_stack([points, np.ones(len(points))])
        bent: Float64 = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), np.eye(3), np.array(k, np.float64))[0]
        return bent.reshape(-1, 2)
    u, v = points.T
    square = u * u + v * v
    k1, k2, p1, p2, k3, k4, sx1, sy1 = (k[0], k[1], 0, 0, k[2], k[3], 0, 0) if model == "opencv_fisheye" else k
    radial = 1 + square * (k1 + square * (k2 + square * (k3 + square * k4)))
    return np.column_stack(
        [
            u * radial + 2 * p1 * u * v + p2 * (square + 2 * u * u) + sx1 * square,
            v * radial + 2 * p2 * u * v + p1 * (square + 2 * v * v) + sy1 * square,
        ]
    )


def _jacobian(points: Float64, model: str, k: Sequence[float]) -> Float64:
    """Return d bend / d point, (N, 2, 2), by central differences."""
    columns = [
        (_bend(points + step, model, k) - _bend(points - step, model, k)) / (2 * DIFFERENCE)
        for step in DIFFERENCE * np.eye(2)
    ]
    return np.stack(columns, axis=2)
