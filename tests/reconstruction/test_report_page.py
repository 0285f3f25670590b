"""report.html: it stands alone, shows what there is, says nothing that is not so, and survives hostile names."""

import base64
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import trimesh
from browser import in_chromium, needs_chromium
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from trimesh.exchange.gltf import export_glb

from reconstruction.atlas import unwrap
from reconstruction.gltf import write_glb
from reconstruction.model import Material, ModelInfo, TexturedModel
from reconstruction.report.chart import line_chart
from reconstruction.report.document import Report, make_report
from reconstruction.report.page import MAX_TRIPLES, convergence, grouped, render_page, size_words
from reconstruction.report.size import size_uncertainty
from scan2twin.capture.models import Intrinsics
from scan2twin.frames import Dataset, DatasetFrame

SIZE = [0.2, 0.3, 0.25]


def model_info(*, metric: bool = True, name: str = "egg") -> ModelInfo:
    return ModelInfo(
        capture_id=name, metric=metric, model_to_reference=np.eye(4).tolist(), size_m=SIZE, triangles=12_345,
        vertices=10, texture_size=512,
    )  # fmt: skip


def report(info: ModelInfo, *warnings: str) -> Report:
    manifest: dict[str, Any] = {
        "fingerprint": "ab" * 32, "warnings": list(warnings), "durations": {"total_s": 12.0}, "peak_memory_mb": 100.0,
        "config": {"seed": 1}, "code_version": "0.1.0", "libraries": {"numpy": "2"},
        "metrics": {"heldout_psnr_foreground": 26.25, "mask_iou_heldout": 0.981},
    }  # fmt: skip
    return make_report(info, {"export": manifest}, 0.0015)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """The output folders of the stages, with every picture and curve that a page may show."""
    found = {name: tmp_path / name for name in ("refine_poses", "mask", "reconstruct", "export", "model")}
    for folder in found.values():
        folder.mkdir()
    (found["export"] / "heldout").mkdir()
    picture = Image.new("RGB", (90, 30), (200, 30, 30))
    for i in range(9):
        picture.save(found["export"] / "heldout" / f"{i:06d}.jpg")
    picture.save(found["mask"] / "coverage.png")
    picture.save(found["mask"] / "contact_sheet.jpg")
    picture.save(found["refine_poses"] / "camera_path.png")
    lines = [{"resumed_at": 0}, *({"iteration": 10 * i, "psnr": 20 + i, "loss": 0.1} for i in range(30))]
    (found["reconstruct"] / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    picture.save(found["model"] / "preview.png")
    trimesh.creation.box().export(found["model"] / "model.glb")
    (found["model"] / "turntable.mp4").write_bytes(b"video")
    return found


def page(folders: dict[str, Path], *warnings: str, name: str = "egg") -> str:
    info = model_info(name=name)
    return render_page(report(info, *warnings), info, folders["model"], folders)


class Addresses(HTMLParser):
    """Collects what a page loads and checks that its elements are closed."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key in ("src", "href", "poster", "data"):
                (self.links if tag == "a" else self.loads).append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(text: str) -> Addresses:
    parser = Addresses()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_the_page_stands_alone(folders: dict[str, Path]) -> None:
    found = parsed(page(folders))
    # preview twice (poster and print), turntable, model, six triples, coverage, path, sheet
    assert len(found.loads) == 4 + MAX_TRIPLES - 1 + 3
    assert all(address.startswith("data:") for address in found.loads)
    assert set(found.links) == {"model.glb", "preview.png", "turntable.mp4"}


def test_a_level_that_needs_a_decoder_from_the_network_is_passed_over(folders: dict[str, Path]) -> None:
    def shown() -> bytes:
        models = [address for address in parsed(page(folders)).loads if "gltf-binary" in address]
        return base64.b64decode(models[0].partition(",")[2])

    web, full = folders["model"] / "model_web.glb", folders["model"] / "model.glb"
    web.write_bytes(export_glb(trimesh.creation.icosphere().scene()))
    assert shown() == web.read_bytes()
    ball = trimesh.creation.icosphere(subdivisions=1)
    mesh = unwrap(ball.vertices.astype(np.float32), ball.faces.astype(np.int32), 64)
    write_glb(TexturedModel(mesh, Material(np.zeros((4, 4, 3), np.uint8)), "ball", {}), web, compression="draco")
    assert shown() == full.read_bytes()


def test_the_page_says_what_the_report_says(folders: dict[str, Path]) -> None:
    text = page(folders, "frame 3 is blurred; hold still", "the <b>mask</b> & co")
    for words in (
        "200 × 300 × 250 mm ± 1.5 mm", "26.2 dB", "98.1 %", "12,345 triangles", "frame 3 is blurred; hold still",
        "the &lt;b&gt;mask&lt;/b&gt; &amp; co", "ab" * 32, "12.0 s", "<polyline",
    ):  # fmt: skip
        assert words in text, words
    assert "No stage had anything to warn of." not in text
    assert "No stage had anything to warn of." in page(folders)


def test_frames_with_the_same_fault_are_named_together() -> None:
    assert grouped(
        [
            "condition: frame 13: left out: blurred, 2 % as sharp; move slowly",
            "mask: frame 3: look at it",
            "condition: frame 25: left out: blurred, 10 % as sharp; move slowly",
            "condition: frame 27: left out: blurred, 1 % as sharp; move slowly",
            "condition: the capture has 10 frames",
            "condition: the capture has 11 frames",
            "condition: frame 4: left out: as frame 5, which is sharper",
            "condition: frame 6: left out: as frame 7, which is sharper",
            "mask: frame 8: overlap 0.95",
            "mask: frame 9: overlap 0.9",
        ]
    ) == [
        ("condition", "frames 13, 25, 27: left out: blurred, 1 to 10 % as sharp; move slowly"),
        ("mask", "frame 3: look at it"),
        ("condition", "the capture has 10 frames"),
        ("condition", "the capture has 11 frames"),
        ("condition", "frame 4: left out: as frame 5, which is sharper"),
        ("condition", "frame 6: left out: as frame 7, which is sharper"),
        ("mask", "frames 8, 9: overlap 0.9 to 0.95"),
    ]


MEASURE = """
const found = {};
for (const width of [1280, 390]) {
  const mobile = width < 500;
  const page = await open({ viewport: { width, height: 800 }, isMobile: mobile, hasTouch: mobile });
  const requests = [];
  page.on('request', request => { if (!/^(file|data|blob):/.test(request.url())) requests.push(request.url()); });
  await page.goto(args.page);
  await page.waitForFunction(() => document.getElementById('model').loaded);
  await page.waitForFunction(() => !document.getElementById('tools').hidden);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  await page.waitForTimeout(500);
  await page.click('#measure');
  const { x, y, width: side } = await page.locator('#model').boundingBox();
  const read = [];
  for (const [s, t] of [[.5, .5], [.6, .45], [.02, .02]]) {
    await page.mouse.click(x + s * side, y + t * side);
    read.push(await page.textContent('#distance'));
  }
  const points = await page.evaluate(() =>
    [...document.querySelectorAll('[slot^=hotspot]')].map(spot => spot.dataset.position));
  await page.click('#measure');
  const left = await page.evaluate(() => document.querySelectorAll('[slot^=hotspot]').length);
  found[width] = { requests, wide, read, points, left };
  if (args.shots) await page.screenshot({ path: `${args.shots}/measure-${width}.png` });
  if (!mobile) found.opened = await page.evaluate(() => {
    dispatchEvent(new Event('beforeprint'));
    return document.getElementById('origin').open;
  });
}
return found;
"""


@needs_chromium
def test_a_browser_shows_and_measures_the_model(folders: dict[str, Path], tmp_path: Path) -> None:
    """A ball with a radius of 100 mm, at desktop and at phone size, without a network."""
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.1)
    mesh = unwrap(ball.vertices.astype(np.float32), ball.faces.astype(np.int32), 64)
    write_glb(
        TexturedModel(mesh, Material(np.full((64, 64, 3), 90, np.uint8)), "ball", {}), folders["model"] / "model.glb"
    )
    (tmp_path / "report.html").write_text(page(folders), encoding="utf-8")
    shots = os.environ.get("SCAN2TWIN_TEST_SCREENSHOTS")
    seen = in_chromium(MEASURE, page=(tmp_path / "report.html").as_uri(), shots=shots)
    assert seen["errors"] == []
    assert seen["opened"]
    for width in ("1280", "390"):
        found = seen[width]
        assert found["requests"] == []
        assert not found["wide"]
        a, b = np.array([[float(part.rstrip("m")) for part in point.split()] for point in found["points"]])
        assert np.linalg.norm([a, b], axis=1) == pytest.approx([0.1, 0.1], rel=0.01)  # on the ball
        distance = 1000 * np.linalg.norm(a - b)
        assert 10 < distance < 100
        assert found["read"] == ["click the second point", f"{distance:.1f} mm", f"{distance:.1f} mm"]
        assert found["left"] == 0


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("refine_poses", "mask", "reconstruct", "export", "model")}
    text = page(folders)
    assert parsed(text).loads == []
    assert "Masks" not in text
    assert "model-viewer class" not in text


def test_a_large_model_is_shown_by_its_turntable(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reconstruction.report.page.MAX_EMBEDDED_MODEL", 10)
    text = page(folders)
    assert "<model-viewer" not in text
    assert re.search(r'<video class="screen" id="turntable"[^>]*muted playsinline>', text)


def test_a_hostile_name_stays_text(folders: dict[str, Path]) -> None:
    text = page(folders, name='"><script>alert(1)</script>')
    assert "<script>alert" not in text
    parsed(text)


@pytest.mark.parametrize(
    ("metric", "uncertainty", "words"),
    [
        (True, 0.0015, "200 × 300 × 250 mm ± 1.5 mm"),
        (True, 0.0004, "200.0 × 300.0 × 250.0 mm ± 0.4 mm"),
        (True, None, "200.0 × 300.0 × 250.0 mm"),
        (False, 0.0015, "0.200 × 0.300 × 0.250 units (the scale is unknown)"),
    ],
)
def test_the_size_is_said_with_the_digits_it_has(metric: bool, uncertainty: float | None, words: str) -> None:
    made = make_report(model_info(metric=metric), {}, uncertainty)
    assert size_words(made) == words


def test_the_uncertainty_is_that_of_pixels_and_poses() -> None:
    """A hundred cameras 2 m from an object (unit frame 0.5 m long), focal length 1000 at 512 px, optimised at 256."""
    frames = [
        DatasetFrame(
            index=i, image="a.png", mask="b.png", split="train",
            intrinsics=Intrinsics(fx=1000, fy=1000, cx=256, cy=256),
            camera_to_unit=[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]],
        )
        for i in range(100)
    ]  # fmt: skip
    dataset = Dataset(
        capture_id="egg", resolution=512, metric=True, object_size_unit=[1, 1, 1], frames=frames,
        unit_to_reference=[[0.5, 0, 0, 1], [0, 0.5, 0, 2], [0, 0, 0.5, 3], [0, 0, 0, 1]],
    )  # fmt: skip
    side = 0.5 * 2 / 500  # half a pixel at 2 m
    assert size_uncertainty(dataset, 0.5, 256, {}) == pytest.approx(2 * np.sqrt(2) * side)
    rng = np.random.default_rng(0)
    positions = np.tile((0.0, 0.0, 2.0), (100, 1))
    noisy = positions + rng.normal(0, 0.5, (2000, 100, 3))
    spread = ((noisy * positions).sum(axis=(1, 2)) / np.square(positions).sum()).std()  # scale by least squares
    both = size_uncertainty(dataset, 0.5, 256, {"tracker_sigma_mm": 500})
    assert both == pytest.approx(2 * np.sqrt(2 * side**2 + (spread * 0.5) ** 2), rel=0.05)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
@example([1e6, 1e6 + 1e-9])
@example([0.0, 5e-324])
@example([1e6 - 1e-4, 1e6])
def test_a_chart_keeps_inside_its_frame(values: list[float]) -> None:
    root = ElementTree.fromstring(line_chart(list(range(len(values))), values, "x", "y"))
    for line in root.iter("polyline"):
        points = [[float(c) for c in point.split(",")] for point in line.attrib["points"].split()]
        assert len(points) == len(values)
        assert all(0 <= x <= 640 and 0 <= y <= 240 for x, y in points)


def test_a_rising_curve_rises(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"iteration": {i}, "psnr": {i}}}\n' for i in range(10)))
    chart = convergence(tmp_path / "metrics.jsonl")
    assert chart is not None
    pale = next(ElementTree.fromstring(chart).iter("polyline"))
    heights = [float(point.split(",")[1]) for point in pale.attrib["points"].split()]
    assert heights == sorted(heights, reverse=True)
    (tmp_path / "metrics.jsonl").write_text('{"resumed_at": 3}\n')
    assert convergence(tmp_path / "metrics.jsonl") is None
