"""Masks that agree with each other: the refiner over any network.

Each view votes on a voxel grid; what most views call object is the hull (see `hull`). In every view the hull's
silhouette then says where its mask may reach, what it must hold, and how far the mask can be trusted; GrabCut
(Rother et al. 2004) settles the outline on the photo's own edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from preprocessing.crop import crop_intrinsics, whole_pixels
from preprocessing.images import UInt8
from preprocessing.masks.components import largest_component
from preprocessing.masks.hull import Grid, draw, grid_over, largest_body, projection, shell, vote
from preprocessing.masks.views import View

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

VOTE_RESOLUTION = 256  # side of the masks that vote, pixels
# A mask may not reach beyond what 80 % of the views allow. What is to be object in a view that says otherwise may be
# denied by one view in twenty, by one of few: of more (one in ten), gaps that few views look through, as between legs,
# were filled; of none, one wrong mask would carve into all others.
OUTER_SHARE, INNER_DISSENT, FEW_DISSENTERS = 0.8, 0.05, 1.5
LIKELY_SHARE = 0.9  # for the silhouettes that masks are compared with
BODY_SHARE = 0.7  # for the first look: rather too large a box than one that cuts the object
COARSE_VOXELS, VOXELS = 48, 128  # along the longest side of the box
TOLERANCE = 0.03  # how far below the median a mask's agreement may lie without harm: voxels are coarse
MAX_DISTRUST = 0.15  # a mask whose agreement is this much below the median is replaced by the hull's silhouette
OUTLIER_DEVIATIONS = 4.5  # … if that is also this many median absolute deviations (three standard deviations)
GRABCUT_ITERATIONS = 2
SURE_OBJECT, SURE_BACKGROUND = 200, 55  # of 255: where a trusted mask is as sure, colours do not move its outline
# Pixels per 512 of the image side: how far the outline may move, and how far a hull of voxels reaches too far.
OUTLINE_BAND, HULL_SLACK = 3, 4


@dataclass(frozen=True)
class Hull:
    """The consensus of all views: voxel centres (N, 3) of the outer layers, reference frame, and the voxels' side."""

    inner: Float64  # what a mask is offered
    likely: Float64  # what it is compared with
    outer: Float64  # what it may reach
    step: float


def iou(one: UInt8, other: UInt8) -> float:
    """Return intersection over union of two soft masks at half; 1 if both are empty."""
    a, b = one >= 128, other >= 128
    union = np.count_nonzero(a | b)
    return float(np.count_nonzero(a & b) / union) if union else 1.0


def view_projection(view: View, resolution: int) -> tuple[Float64, float]:
    """Return the view's 3×4 projection into its crop at `resolution`² pixels and its focal length there."""
    intrinsics = crop_intrinsics(view.frame.intrinsics, view.crop, resolution)
    return projection(np.array(view.frame.camera_to_reference), intrinsics), intrinsics.fx


def silhouette(centres: Float64, step: float, view: View, resolution: int) -> UInt8:
    """Return what voxels of side `step` at `centres` (N, 3) cover of the view's crop, `resolution`² pixels.

    Beyond the photo it is 0, as masks are.
    """
    matrix, focal = view_projection(view, resolution)
    drawn: UInt8 = np.where(view.seen(resolution), draw(centres, step, matrix, focal, resolution), 0).astype(np.uint8)
    return drawn


def ballot(mask: UInt8) -> UInt8:
    """Return a mask (R, R) in the size in which it votes."""
    small: UInt8 = cv2.resize(mask, (VOTE_RESOLUTION, VOTE_RESOLUTION), interpolation=cv2.INTER_AREA)
    return small


def _shares(views: Sequence[View], ballots: Sequence[UInt8], weights: Float32, grid: Grid) -> Float32:
    known = [view.seen(VOTE_RESOLUTION) for view in views]
    projections = np.stack([view_projection(view, VOTE_RESOLUTION)[0] for view in views])
    return vote(grid, np.stack(ballots), np.stack(known), projections, weights)


def build_hull(views: Sequence[View], ballots: Sequence[UInt8], weights: Float32, grid: Grid) -> Hull:
    """Return the hull that `ballots` (each `VOTE_RESOLUTION`², with weights (V,)) agree on; empty if they do not."""
    shares = _shares(views, ballots, weights, grid)
    inner_share = 1 - max(INNER_DISSENT, FEW_DISSENTERS / len(views))
    inner, likely, outer = (
        shell(grid, largest_body(shares >= share)) for share in (inner_share, LIKELY_SHARE, OUTER_SHARE)
    )
    return Hull(inner, likely, outer, grid.step)


def agreement(views: Sequence[View], ballots: Sequence[UInt8], hull: Hull) -> Float32:
    """Return for each view the IoU (V,) of its ballot and the hull's silhouette."""
    return np.array(
        [
            iou(mask, silhouette(hull.likely, hull.step, view, VOTE_RESOLUTION))
            for view, mask in zip(views, ballots, strict=True)
        ],
        np.float32,
    )


def trust(agreements: Float32) -> Float32:
    """Return weights (V,): 1 at the median agreement, ½ where a mask counts as wrong, falling on to 0.

    A mask counts as wrong `MAX_DISTRUST` below the median, or later where all agreements scatter widely: the hull
    of few and weak masks is no better than they are.
    """
    behind = np.median(agreements) - agreements
    limit = max(MAX_DISTRUST, OUTLIER_DEVIATIONS * float(np.median(np.abs(behind))))
    weights: Float32 = np.clip(1 - (behind - TOLERANCE) / (2 * (limit - TOLERANCE)), 0, 1)
    return weights


def consensus(views: Sequence[View], ballots: Sequence[UInt8], low: Float64, high: Float64) -> tuple[Hull, Float32]:
    """Vote twice on a grid from `low` to `high` (reference frame): once alike, once by trust.

    Returns the second hull and each view's agreement (V,) with it.
    """
    grid = grid_over(low, high, VOXELS)
    first = build_hull(views, ballots, np.ones(len(views), np.float32), grid)
    weights = np.maximum(trust(agreement(views, ballots, first)), np.float32(0.05))
    hull = build_hull(views, ballots, weights, grid)
    return hull, agreement(views, ballots, hull)


def find_body(views: Sequence[View], ballots: Sequence[UInt8], low: Float64, high: Float64) -> Float64:
    """Return the (N, 3) outermost points of the body that the views show between `low` and `high`, with room round it.

    Generous: a voxel stays if `BODY_SHARE` of the views agree, and each stands for its neighbours too.
    """
    grid = grid_over(low, high, COARSE_VOXELS)
    body = largest_body(_shares(views, ballots, np.ones(len(views), np.float32), grid) >= BODY_SHARE)
    grown = ndimage.binary_dilation(body, np.ones((3, 3, 3), bool))
    return shell(grid, grown)


def _ellipse(radius: int) -> UInt8:
    kernel: UInt8 = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return kernel


def refine_mask(rgb: UInt8, mask: UInt8, view: View, hull: Hull, trusted: bool) -> UInt8:
    """Return the mask (R, R) of the crop `rgb` (R, R, 3) brought into agreement with `hull`.

    A trusted mask is clamped to the outer silhouette, and where the eroded inner silhouette holds more, GrabCut
    decides. A mask that is not trusted gives way to the inner silhouette, whose eroded core then stands. Beyond the
    photo the mask is 0, and the border's pixels that go on there teach GrabCut no colours.
    """
    resolution = len(mask)
    scale = resolution / 512
    band, slack = max(1, round(OUTLINE_BAND * scale)), max(1, round(HULL_SLACK * scale))
    photo = whole_pixels(view.photo(resolution))
    seen_mask = mask[photo]
    inner = silhouette(hull.inner, hull.step, view, resolution)[photo]
    core = cv2.erode(inner, _ellipse(slack)) > 0
    if trusted:
        outer = silhouette(hull.outer, hull.step, view, resolution)[photo]
        start = ((seen_mask >= 128) & (cv2.dilate(outer, _ellipse(slack)) > 0)) | core
    else:
        start = inner >= 128
        band *= 2
    solid = start.astype(np.uint8)
    labels = np.where(start, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[cv2.erode(solid, _ellipse(band)) > 0] = cv2.GC_FGD
    labels[cv2.dilate(solid, _ellipse(band)) == 0] = cv2.GC_BGD
    if trusted:
        labels[(seen_mask >= SURE_OBJECT) & start] = cv2.GC_FGD
        labels[(seen_mask <= SURE_BACKGROUND) & ~core] = cv2.GC_BGD
        labels[core & (seen_mask < 128)] = cv2.GC_PR_FGD
    else:
        labels[core] = cv2.GC_FGD
    if np.any(labels == cv2.GC_FGD) and np.any(labels == cv2.GC_BGD):
        models = np.zeros((1, 65)), np.zeros((1, 65))
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)[photo]
        cv2.setRNGSeed(0)  # GrabCut's k-means draws at random; the same photo shall give the same mask
        cv2.grabCut(bgr, labels, None, *models, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_MASK)
    hard = np.where((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD), 255, 0).astype(np.uint8)
    soft: UInt8 = cv2.GaussianBlur(hard, (0, 0), 0.7)  # an edge falls anywhere in its pixel
    refined = np.zeros_like(mask)
    refined[photo] = largest_component(soft, np.ones(soft.shape, bool))
    return refined
