"""Every test that the documentation names as proof exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("failures.md", "airflow.md", "artifacts.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page: str) -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text()))
    assert named - defined == set()


def test_the_failures_page_names_a_test_for_every_failure() -> None:
    rows = [line for line in (ROOT / "docs/failures.md").read_text().splitlines() if line.startswith("| ")]
    failures = [row for row in rows if not row.startswith("| failure")]
    assert len(failures) > 30
    assert [row for row in failures if "`test_" not in row.rsplit("|", 2)[1]] == []
