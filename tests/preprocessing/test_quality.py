"""The quality gate: what a person is told about a capture's views."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from preprocessing.quality import Earlier, assess, directions, draw_coverage, largest_gap
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


@pytest.mark.parametrize(
    ("earlier", "trust", "warning", "refusal"),
    [
        (Earlier(photos=60, blurred=15), 1.0, "15 of 60 photos are blurred and were left out: give more light", None),
        (Earlier(photos=60, blurred=45), 1.0, None, "45 of 60 photos are blurred: record again; give more light"),
        (Earlier(residual_px=2.04), 1.0, "do not fit together exactly (off by 2.0 pixels): the model will be", None),
        (Earlier(residual_px=7.0), 1.0, None, "do not fit together exactly (off by 7.0 pixels): record again"),
        (Earlier(), 0.2, None, "in 40 of 40 photos the object was hard to tell from its background: give masks"),
    ],
)  # fmt: skip
def test_what_earlier_stages_found_counts(
    earlier: Earlier, trust: float, warning: str | None, refusal: str | None
) -> None:
    quality = assess(ROUND, HEIGHTS, SURE * trust, CONFIG, earlier)
    assert len(quality.warnings) == (warning is not None)
    assert len(quality.refusals) == (refusal is not None)
    assert (warning or "") in "".join(quality.warnings)
    assert (refusal or "") in "".join(quality.refusals)
    assert quality.verdict == ("refuse" if refusal else "warn")


def test_too_few_views_are_refused() -> None:
    few = np.arange(0, 360, 60.0)
    quality = assess(few, np.resize([0.0, 40.0], 6), np.ones(6), CONFIG)
    assert quality.refusals == (["only 6 photos show the object, at least 8 are needed: take more, all the way round"])


def test_earlier_findings_are_read_from_manifests() -> None:
    manifests = {
        "condition": {"metrics": {"frames": 55, "frames_blurred": 5}},
        "refine_poses": {"metrics": {"refined": True, "reprojection_px": 0.4}},
    }
    assert Earlier.from_manifests(manifests) == Earlier(photos=60, blurred=5, residual_px=0.4)
    unrefined = manifests | {"refine_poses": {"metrics": {"refined": False, "reprojection_px": 9.0}}}
    assert Earlier.from_manifests(unrefined).residual_px is None
    assert Earlier.from_manifests({}) == Earlier()


def test_the_coverage_picture_is_drawn(tmp_path: Path) -> None:
    behind = np.abs(ROUND - 180) > 50
    draw_coverage(tmp_path / "gap.png", ROUND[behind], HEIGHTS[behind], SURE[behind], CONFIG)
    pink = np.asarray(Image.open(tmp_path / "gap.png").convert("RGB")).astype(int)
    shaded = np.count_nonzero((pink[..., 0] > 235) & (pink[..., 1] < 230) & (pink[..., 2] < 230))
    assert shaded > 5000
    draw_coverage(tmp_path / "coverage.png", ROUND, HEIGHTS, SURE, CONFIG)
    picture = Image.open(tmp_path / "coverage.png").convert("RGB")
    assert picture.size == (720, 648)
    green = np.asarray(picture).astype(int)
    assert np.count_nonzero((green[..., 1] > green[..., 0] + 60) & (green[..., 1] > green[..., 2] + 30)) > 40 * 20
