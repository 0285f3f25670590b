"""Rigid transforms between sets of points: the best for given pairs, and the one that most doubtful pairs agree on."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TRIPLES = 100_000  # drawn: one pair in thirty right still gives four triples of right ones
MAX_FITTED = 4000  # triples whose sides agree, that are fitted and counted
REFITS = 10
SEED = 0


def fit_rigid(source: Array, target: Array) -> tuple[Array, Array]:
    """Return the rotations (…, 3, 3) and shifts (…, 3) with the least Σ ‖R s + t − g‖² of points (…, N ≥ 3, 3).

    Kabsch 1976; the determinant's sign keeps out mirrorings (Umeyama 1991, equation 43). No scale: both are metric.
    """
    middle_s, middle_g = source.mean(axis=-2), target.mean(axis=-2)
    covariance = np.swapaxes(source - middle_s[..., None, :], -1, -2) @ (target - middle_g[..., None, :])
    U, _, Vt = np.linalg.svd(covariance)
    V, Ut = np.swapaxes(Vt, -1, -2), np.swapaxes(U, -1, -2)
    V = V * np.stack([np.ones(V.shape[:-2]), np.ones(V.shape[:-2]), np.linalg.det(V @ Ut)], axis=-1)[..., None, :]
    R = V @ Ut
    return R, middle_g - (R @ middle_s[..., None])[..., 0]


def agree_rigid(source: Array, target: Array, tolerance: float, shortest: float) -> tuple[Array, Array, Array] | None:
    """Find the rotation (3, 3) and shift (3,) that most pairs of points (N, 3) agree on, and which do (N,), or None.

    RANSAC (Fischler and Bolles 1981) on triples of pairs. Of a rigid transform the triangle's sides are as long in both
    sets, which drops nearly all wrong triples before they are fitted. A pair agrees within `tolerance`; the sides of
    triangles are at least `shortest`, for the turn of smaller ones is not known.
    """
    if len(source) < 3:
        return None
    rng = np.random.default_rng(SEED)
    triples = rng.integers(len(source), size=(TRIPLES, 3))
    sides = [
        np.linalg.norm(points[triples] - points[np.roll(triples, 1, axis=1)], axis=2) for points in (source, target)
    ]
    congruent = np.all(np.abs(sides[0] - sides[1]) < tolerance, axis=1) & (sides[0].min(axis=1) > shortest)
    triples = triples[congruent][:MAX_FITTED]
    if not len(triples):
        return None
    R, t = fit_rigid(source[triples], target[triples])
    counts = [
        np.count_nonzero(np.linalg.norm(source @ r.T + s - target, axis=1) < tolerance)
        for r, s in zip(R, t, strict=True)
    ]
    best = int(np.argmax(counts))
    rotation, shift = R[best], t[best]
    agreed = np.linalg.norm(source @ rotation.T + shift - target, axis=1) < tolerance
    for _ in range(REFITS):
        if agreed.sum() < 3:
            return None
        rotation, shift = fit_rigid(source[agreed], target[agreed])
        before, agreed = agreed, np.linalg.norm(source @ rotation.T + shift - target, axis=1) < tolerance
        if np.array_equal(before, agreed):
            break
    return rotation, shift, agreed
