"""The quality gate: what a person is told about a capture's views."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.quality import assess, directions, draw_coverage, largest_gap
from scan2twin.config import MaskConfig

CONFIG = MaskConfig()
ROUND = np.arange(0, 360, 9.0)  # 40 views
HEIGHTS = np.where(np.arange(40) % 2, 10.0, 40.0)
SURE = np.ones(40)


def test_directions_are_those_of_a_person_facing_the_object() -> None:
    # The first camera stands on +Z and looks along -Z, +Y up: its right is +X.
    centre = np.array([5.0, 6.0, 7.0])
    azimuth, elevation = directions(np.array([[0, 0, 2], [2, 0, 0], [0, 2, -2], [-1, 0, 0]]) + centre, centre)
    assert azimuth == pytest.approx([0, 90, 180, 270])
    assert elevation == pytest.approx([0, 0, 45, 0])


@settings(deadline=None)
@given(st.lists(st.floats(0, 359.99), min_size=1, max_size=30), st.floats(0, 360))
def test_the_largest_gap_turns_with_the_views(azimuth: list[float], turn: float) -> None:
    gap, middle = largest_gap(np.array(azimuth))
    turned, _ = largest_gap((np.array(azimuth) + turn) % 360)
    assert turned == pytest.approx(gap, abs=1e-6)
    nearest = np.abs((np.array(azimuth) - middle + 180) % 360 - 180).min()
    assert nearest == pytest.approx(gap / 2, abs=1e-6)


def test_a_good_capture_passes_in_silence() -> None:
    quality = assess(ROUND, HEIGHTS, SURE, CONFIG)
    assert not quality.warnings
    assert not quality.refusals
    assert quality.largest_gap_deg == pytest.approx(9)


def test_each_shortcoming_has_its_sentence() -> None:
    behind = np.abs(ROUND - 180) > 50
    quality = assess(ROUND[behind], HEIGHTS[behind], SURE[behind], CONFIG)
    assert any("no views from behind (108° without a photo)" in warning for warning in quality.warnings)
    right = np.abs(ROUND - 90) > 50
    assert any(
        "no views from the right" in text for text in assess(ROUND[right], HEIGHTS[right], SURE, CONFIG).warnings
    )

    assert "one height" in assess(ROUND, HEIGHTS * 0 + 20, SURE, CONFIG).warnings[0]
    assert "only 20 photos" in assess(ROUND[::2], np.resize([0.0, 40.0], 20), SURE[::2], CONFIG).warnings[0]
    doubtful = np.where(np.arange(40) < 10, 0.2, 1.0)
    assert "in 10 of 40 photos the object was hard to tell" in assess(ROUND, HEIGHTS, doubtful, CONFIG).warnings[0]


def test_views_from_one_side_are_refused_or_not_as_configured() -> None:
    one_side = np.linspace(0, 40, 40)
    quality = assess(one_side, HEIGHTS, SURE, CONFIG)
    assert "all photos are from one side (within 40°)" in quality.refusals[0]
    lenient = assess(one_side, HEIGHTS, SURE, MaskConfig(refuse_gap_deg=360))
    assert not lenient.refusals
    assert "without a photo" in lenient.warnings[0]


def test_the_coverage_picture_is_drawn(tmp_path: Path) -> None:
    draw_coverage(tmp_path / "coverage.png", ROUND, HEIGHTS, SURE)
    picture = Image.open(tmp_path / "coverage.png").convert("RGB")
    assert picture.size == (600, 600)
    green = np.asarray(picture).astype(int)
    assert np.count_nonzero((green[..., 1] > green[..., 0] + 60) & (green[..., 1] > green[..., 2] + 30)) > 40 * 20
