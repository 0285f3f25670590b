"""A picture of the camera path round the object, for the report."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from scan2twin.frames import PosedFrames

MAGNIFY = 20  # how many times longer than true the corrections are drawn, for they are millimetres


def plot_camera_path(path: Path, posed: PosedFrames, refined: NDArray[np.float64], dropped: Collection[int]) -> None:
    """Write a PNG: the cameras from above and from the side, where they look, and how refinement moved them.

    `refined` (N × 4 × 4) belongs to the rows of `posed`; `dropped` are rows drawn as left out. Metres, or units.
    """
    given = np.array([frame.camera_to_reference for frame in posed.frames])
    kept = [row for row in range(len(given)) if row not in dropped]
    tracked = [row for row in kept if not posed.frames[row].guessed]  # a guess is not the tracker's error
    size = 0.15 * float(np.median(np.linalg.norm(given[:, :3, 3] - posed.object.center, axis=1)))
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    unit = "m" if posed.metric else "units"
    for number, (right, up, title) in enumerate(((0, 2, "from above"), (0, 1, "from the side")), 1):
        axes = figure.add_subplot(1, 2, number)
        position, forward = refined[:, :3, 3], -refined[:, :3, 2]
        low = np.array(posed.object.center) - np.array(posed.object.size) / 2
        axes.add_patch(
            Rectangle(
                (low[right], low[up]), posed.object.size[right], posed.object.size[up], color="0.85", label="object box"
            )
        )
        axes.plot(position[kept, right], position[kept, up], "-", color="0.8", linewidth=1, zorder=1)
        axes.quiver(position[kept, right], position[kept, up], forward[kept, right] * size, forward[kept, up] * size,
                    angles="xy", scale_units="xy", scale=1, color="tab:blue", width=0.003, label="camera")  # fmt: skip
        correction = MAGNIFY * (position - given[:, :3, 3])[tracked]
        axes.quiver(position[tracked, right], position[tracked, up], -correction[:, right], -correction[:, up],
                    angles="xy", scale_units="xy", scale=1, color="tab:orange", width=0.003,
                    label=f"tracker's error × {MAGNIFY}")  # fmt: skip
        rows = sorted(dropped)
        axes.plot(given[rows, right, 3], given[rows, up, 3], "x", color="tab:red", label="left out")
        axes.set(title=title, xlabel=f"{'xyz'[right]} ({unit})", ylabel=f"{'xyz'[up]} ({unit})", aspect="equal")
        axes.margins(0.12)
        if up == 2:
            axes.invert_yaxis()  # z comes towards the viewer who looks down
        axes.grid(color="0.92")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=100)
