"""What a mask looks like in its picture: its main part, and whether the photo cuts it off."""

import cv2
import numpy as np
import numpy.typing as npt

from preprocessing.images import UInt8

Bool = npt.NDArray[np.bool_]

SOFT_EDGE_SHARE = 0.01  # of the image side: how far beyond the component its soft edge is kept


def largest_component(probability: UInt8, region: Bool) -> UInt8:
    """Keep the largest connected part of the soft mask (R, R) inside `region`, with its soft edge; 0 elsewhere."""
    inside = np.where(region, probability, 0).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats((inside >= 128).astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros_like(inside)
    component = (labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))).astype(np.uint8)
    reach = max(1, round(SOFT_EDGE_SHARE * len(inside)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    kept: UInt8 = np.where(cv2.dilate(component, kernel) > 0, inside, 0).astype(np.uint8)
    return kept


def cut_share(mask: UInt8, photo: Bool) -> float:
    """Return the share of the outline of `mask` (R, R) that lies on the edge of `photo` (R, R), where it was seen."""
    cross = np.ones((3, 3), np.uint8)
    solid = (mask >= 128).astype(np.uint8)
    outline = solid > cv2.erode(solid, cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    inner = cv2.erode(photo.astype(np.uint8), cross, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    total = np.count_nonzero(outline)
    return float(np.count_nonzero(outline & (inner == 0)) / total) if total else 0.0
