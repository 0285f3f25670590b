"""The documentation: it builds without a warning, needs no other server, and what it names exists."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scan2twin.config import PipelineConfig
from scan2twin.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


class Loads(HTMLParser):
    """Collects the addresses of what a page loads when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "source", "iframe"):
            self.found.append(values.get("src") or "")
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "icon", "preconnect"):
            self.found.append(values.get("href") or "")


def test_no_page_loads_from_another_server(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found, page
        assert not [address for address in loads.found if re.match(r"(https?:)?//", address)], page


def test_every_stage_and_option_is_in_the_reference(site: Path) -> None:
    text = (site / "stages.html").read_text(encoding="utf-8")
    for stage in STAGES:
        assert f'id="{stage.name}"' in text
        for option in type(PipelineConfig().section(stage.name)).model_fields:
            assert f"<code>{option}</code>" in text, f"{stage.name}.{option}"


def test_every_library_has_its_licence(site: Path) -> None:
    text = (site / "licences.html").read_text(encoding="utf-8")
    for name in ("torch", "numba", "usd-core", "mkdocs-material"):
        assert re.search(rf"<td>{name}</td>\s*<td>(?!not installed)\S", text), name


@pytest.mark.parametrize("page", ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))])
def test_links_to_files_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        known = ((ROOT / page).parent / target).exists() or target.endswith("stages.md")  # that one is generated
        assert known, f"{page}: {target}"


def test_every_test_that_the_readme_names_exists() -> None:
    named = re.findall(r"`(tests/[^`]+\.py)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("page", ["docs/method.md", "docs/reconstruction.md", "docs/rendering.md"])
def test_modules_and_tests_of_the_method_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = ("", "reconstruction", "reconstruction/rasterizer", "preprocessing", "tests/reconstruction",
               "tests/preprocessing")  # fmt: skip
    for name in re.findall(r"`([\w/]+\.py)`", text):
        assert any((ROOT / folder / name).is_file() for folder in folders), f"{page}: {name}"
