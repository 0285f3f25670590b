"""`report.html`: one file that shows a model and how good it is, without a network or other files.

Pictures, the model itself (its smallest GLB) and the viewer are inside the page as data.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup
from PIL import Image

from reconstruction.draco import DRACO
from reconstruction.model import ModelInfo
from reconstruction.report.chart import line_chart
from reconstruction.report.document import Report

HERE = Path(__file__).parent
MAX_EMBEDDED_MODEL = 8_000_000  # bytes: a larger one makes a page that phones open slowly; the turntable stands in
MAX_TRIPLES = 6  # held-out views shown
PICTURE_WIDTH = 1200  # pixels: sharp on a phone and on paper
QUALITY = 80  # of JPEG
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ABOUT_ONE_FRAME = re.compile(r"^\w+: frame \d+:(?!.*\bframe \d)")  # a warning that names no other frame

# What each file is for, in the order of the page.
FILES = {
    "model.glb": "the model: Blender, Windows 3D Viewer, three.js, Unity, Unreal",
    "model_web.glb": "smaller, for web pages",
    "model_ar.glb": "for AR viewers on Android",
    "model.usdz": "for AR Quick Look on iPhone and iPad, and USD tools",
    "model.obj": "older tools; needs model.mtl and the model_*.png beside it",
    "model.ply": "measuring tools: CloudCompare, MeshLab",
    "environment.hdr": "the light of the scan, to light scenes with",
    "model.json": "size, counts, and where the object stood in the scan",
    "preview.png": "a picture",
    "turntable.mp4": "one turn as a video",
    "report.json": "this report for programs",
}


def render_page(report: Report, info: ModelInfo, model: Path, folders: Mapping[str, Path]) -> str:
    """Return the page of the model in the folder `model`; `folders` holds each earlier stage's output, if there.

    What a stage did not leave (a picture, a curve) is left out of the page.
    """
    glbs = (file for name in ("model_web.glb", "model.glb") if (file := model / name).is_file())
    # The viewer would fetch its Draco decoder from the network.
    glb = next((file for file in glbs if DRACO.encode() not in file.read_bytes()), None)
    if glb is not None and glb.stat().st_size > MAX_EMBEDDED_MODEL:
        glb = None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        info=info,
        size=size_words(report),
        warnings=grouped(report.warnings),
        preview=_picture(model / "preview.png"),
        glb=glb and _data_uri(glb.read_bytes(), "model/gltf-binary"),
        turntable=_data_uri(path.read_bytes(), "video/mp4") if (path := model / "turntable.mp4").is_file() else None,
        viewer=Markup((HERE / "model-viewer.min.js").read_text(encoding="utf-8")),  # vendored
        triples=[_picture(path) for path in _spread(sorted((folders["export"] / "heldout").glob("*.jpg")))],
        coverage=_picture(folders["mask"] / "coverage.png"),
        contact_sheet=_picture(folders["mask"] / "contact_sheet.jpg"),
        camera_path=_picture(folders["refine_poses"] / "camera_path.png"),
        curve=convergence(folders["reconstruct"] / "metrics.jsonl"),
        files=[(name, what, (model / name).stat().st_size) for name, what in FILES.items() if (model / name).is_file()],
    )


def size_words(report: Report) -> str:
    """Return the size as people say it: millimetres with the uncertainty, or the capture's own units."""
    if not report.metric:
        return " × ".join(f"{length:.3f}" for length in report.size_m) + " units (the scale is unknown)"
    uncertainty = report.size_uncertainty_m
    # As many digits as the uncertainty supports: a tenth of a millimetre only where it is below one.
    digits = 1 if uncertainty is None or uncertainty < 1e-3 else 0
    words = " × ".join(f"{1000 * length:.{digits}f}" for length in report.size_m) + " mm"
    return words if uncertainty is None else f"{words} ± {1000 * uncertainty:.1f} mm"


def grouped(warnings: Sequence[str]) -> list[tuple[str, str]]:
    """Return each warning's stage and text; those that say the same of several frames become one."""
    groups: dict[str, list[str]] = {}
    for warning in warnings:
        groups.setdefault(NUMBER.sub("#", warning) if ABOUT_ONE_FRAME.search(warning) else warning, []).append(warning)
    together = []
    for same in groups.values():
        stage, _, text = (_merged(same) if len(same) > 1 else same[0]).partition(": ")
        together.append((stage, text))
    return together


def _merged(warnings: Sequence[str]) -> str:
    """Return one text for warnings that differ in numbers only: all frames, of other numbers the range."""
    frames, *others = zip(*(NUMBER.findall(warning) for warning in warnings), strict=True)
    ranges = []
    for values in others:
        low, *_, high = sorted(values, key=float)
        ranges.append(low if low == high else f"{low} to {high}")
    numbers = iter([", ".join(dict.fromkeys(frames)), *ranges])
    return NUMBER.sub(lambda _: next(numbers), warnings[0].replace(": frame ", ": frames ", 1))


def convergence(metrics: Path) -> Markup | None:
    """Draw how well the optimised views fitted, over the iterations of a metrics.jsonl; None without two points."""
    if not metrics.is_file():
        return None
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line]
    points = [(line["iteration"], line["psnr"]) for line in lines if "psnr" in line]
    if len(points) < 2:
        return None
    return line_chart([x for x, _ in points], [y for _, y in points], "iteration", "PSNR, dB")


def _spread(files: Sequence[Path]) -> Sequence[Path]:
    """Return at most MAX_TRIPLES of `files`, evenly spread."""
    step = max(1, -(-len(files) // MAX_TRIPLES))
    return files[::step]


def _picture(path: Path) -> str | None:
    """Return a picture as a JPEG data URI of at most PICTURE_WIDTH; None if it is not there."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, 10 * PICTURE_WIDTH))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=QUALITY)
    return _data_uri(data.getvalue(), "image/jpeg")


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
