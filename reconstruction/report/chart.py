"""A line chart as SVG inside a page: it takes the page's colours, light or dark, and stays sharp in print."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

WIDTH, HEIGHT = 640, 240  # units of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34  # margins, for the labels of the axes
SMOOTHING, MIN_WINDOW = 0.05, 5  # share of the points that the strong line averages over, and at least so many


def line_chart(x: Sequence[float], y: Sequence[float], x_label: str, y_label: str) -> Markup:
    """Return a chart of y over x (at least two points): points pale, their moving mean strong."""
    xs, ys = np.asarray(x, float), np.asarray(y, float)
    across = LEFT + (xs - xs.min()) / max(np.ptp(xs), 1e-9) * (WIDTH - LEFT - RIGHT)
    ticks = _ticks(float(ys.min()), float(ys.max()))
    low, high = ticks[0], ticks[-1]

    def down(values: npt.ArrayLike) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return TOP + (high - np.asarray(values)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    window = min(len(ys), max(MIN_WINDOW, int(len(ys) * SMOOTHING)))
    padded = np.pad(ys, (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.convolve(padded, np.full(window, 1 / window), mode="valid")
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{y_label} over {x_label}">']
    for value, place in zip(ticks, down(ticks), strict=True):
        parts.append(f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(float(xs.min()), float(xs.max())):
        if xs.min() <= value <= xs.max():
            place = float(np.interp(value, xs, across))
            parts.append(f'<text x="{place:.1f}" y="{HEIGHT - 18}" text-anchor="middle">{value:g}</text>')
    for values, name in ((ys, "pale"), (smooth, "strong")):
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down(values), strict=True))
        parts.append(f'<polyline class="{name}" points="{points}"/>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 3}" text-anchor="middle">{x_label}</text>')
    parts.append("</svg>")
    return Markup("".join(parts))  # numbers and our own labels only


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers that enclose low..high."""
    # What differs in the last digits only is drawn flat: steps so small would drown in rounding.
    span = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-9)
    step = 10 ** np.floor(np.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * 5 >= span)
    first, last = np.floor(low / step), np.ceil(high / step)
    if first == last:
        last += 1
    return [round(float(k * step), 10) for k in np.arange(first, last + 1)]
