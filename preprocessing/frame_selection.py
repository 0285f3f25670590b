"""Which frames are too blurred to help: judged against their neighbours, for what they show differs over a capture."""

import numpy as np
import numpy.typing as npt

NEIGHBOURS = 4  # frames on each side


def relative_sharpness(sharpness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return each frame's sharpness (N,) as a share of the median of its up to 2 · `NEIGHBOURS` neighbours.

    `sharpness` is the variance of the Laplacian in recording order. Motion blur brings it down to a few percent;
    between views of one object it varies by a factor of two. A frame without neighbours, or among black ones, is 1.
    """
    shares = np.ones(len(sharpness))
    for i, value in enumerate(sharpness):
        around = np.delete(sharpness[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1], i - max(0, i - NEIGHBOURS))
        if len(around) and np.median(around) > 0:
            shares[i] = value / np.median(around)
    return shares
