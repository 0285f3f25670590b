"""The pages that show what is in the store: a gallery of captures and models, and tabs of a run: its model, its masks.

Whoever may see the DAG's runs sees them. They change nothing: a review is answered through Airflow's own API.
"""

import io
import mimetypes
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse

from plugins.gallery import Run, gallery_cards, model_figures, read_upload, thumbnail
from scan2twin.capture.models import CAPTURE_ID_PATTERN
from scan2twin.errors import InputError, MissingArtifactError, NotFoundError
from scan2twin.store import ArtifactStore
from scan2twin.store.artifacts import read_manifest
from scan2twin.store.models import PublishedModel, latest_model

REPORT = "report.html"
OBJ_ZIP = "model_obj.zip"  # made when it is asked for: the three kinds of file that only work side by side
_OBJ_PART = re.compile(r"model\.(obj|mtl)|model_\w+\.(png|jpg|webp)")
CONTACT_SHEET = "contact_sheet.jpg"  # of the mask stage
# The order of the download buttons; what a model does not have is left out.
DOWNLOADS = {"model.glb": "GLB", "model.usdz": "USDZ", OBJ_ZIP: "OBJ", "model.ply": "PLY"}
# The report runs its viewer, but as a site of its own: it can do nothing in the name of who looks at it.
_SANDBOX = {"Content-Security-Policy": "sandbox allow-scripts allow-downloads", "X-Content-Type-Options": "nosniff"}
STATES = {
    "uploading": "uploading", "recorded": "no run yet", "queued": "queued", "running": "being made",
    "failed": "failed", "done": "model ready",
}  # fmt: skip
_FRESH = {"Cache-Control": "no-store"}
_pages = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"), autoescape=True, undefined=jinja2.StrictUndefined,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip

_pages.globals["STATES"] = STATES

CaptureId = Annotated[str, PathParameter(pattern=CAPTURE_ID_PATTERN)]


@dataclass(frozen=True)
class ViewHost:
    """What the pages need of the Airflow around them."""

    reader: Callable[..., str]  # FastAPI dependency: name of the signed-in user who may see runs, else 401 or 403
    store: Callable[[], ArtifactStore]
    run: Callable[[str], Run | None]  # None if there is no such run, or it is for no capture
    latest_runs: Callable[[], Mapping[str, Run]]  # by capture id
    stage_output: Callable[[ArtifactStore, Run, str], str | None]  # key prefix of what a stage left in a run
    review_path: Callable[[str], str]  # of Airflow's own API, for the review of a run's masks


def view_routes(host: ViewHost) -> APIRouter:
    """Return the pages, each for readers only."""
    router = APIRouter(include_in_schema=False, dependencies=[Depends(host.reader)])

    @router.get("/gallery")
    def gallery(request: Request) -> HTMLResponse:
        """Show every capture as a card."""
        return _page("gallery.html", request, cards=gallery_cards(host.store(), host.latest_runs()))

    @router.get("/captures/{capture_id}/model")
    def model_of_capture(capture_id: CaptureId, request: Request) -> HTMLResponse:
        """Show a capture's model, or how its run stands."""
        return _model_page(host, request, capture_id, host.latest_runs().get(capture_id), in_gallery=True)

    @router.get("/captures/{capture_id}/thumbnail.jpg")
    def picture(capture_id: CaptureId) -> Response:
        """Show a small picture of a capture."""
        try:
            data = thumbnail(host.store(), capture_id)
        except (MissingArtifactError, NotFoundError):
            data = None
        if data is None:
            raise HTTPException(404, f"there is no picture of capture {capture_id}")
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=60"})

    @router.get("/models/{capture_id}/{name}")
    def model_file(capture_id: CaptureId, name: str) -> Response:
        """Hand out a file of a capture's latest model."""
        return _file(host.store(), capture_id, name)

    @router.get("/runs/{run_id:path}/model")
    def model_of_run(run_id: str, request: Request) -> HTMLResponse:
        """Show the model of a run's capture, or how the run stands."""
        run = host.run(run_id)
        return _model_page(host, request, run.capture_id if run else None, run, in_gallery=False)

    @router.get("/runs/{run_id:path}/masks")
    def masks_of_run(run_id: str, request: Request) -> HTMLResponse:
        """Show the contact sheet of a run's masks, with the buttons of the review where one waits."""
        run = host.run(run_id)
        there = run is not None and _contact_sheet(host, run) is not None
        return _page("masks.html", request, run=run, there=there, review=host.review_path(run_id))

    @router.get("/runs/{run_id:path}/contact_sheet.jpg")
    def contact_sheet(run_id: str) -> Response:
        """Hand out the contact sheet of a run's masks."""
        run = host.run(run_id)
        key = None if run is None else _contact_sheet(host, run)
        if key is None:
            raise HTTPException(404, "this run has no masks yet")
        return Response(host.store().read_bytes(key), media_type="image/jpeg", headers=_SANDBOX | _FRESH)

    return router


def _model_page(
    host: ViewHost, request: Request, capture_id: str | None, run: Run | None, *, in_gallery: bool
) -> HTMLResponse:
    store, model, upload, downloads = host.store(), None, None, {}
    if capture_id is not None and (model := latest_model(store, capture_id)) is not None:
        names = _names(store, model)
        downloads = {name: label for name, label in DOWNLOADS.items() if name in names}
        upload = read_upload(store, capture_id)
    return _page(
        "model.html", request, capture_id=capture_id, name=upload.name if upload else capture_id, run=run,
        model=model, figures=model_figures(store, model), downloads=downloads, report=REPORT, in_gallery=in_gallery,
    )  # fmt: skip


def _contact_sheet(host: ViewHost, run: Run) -> str | None:
    try:
        folder = host.stage_output(host.store(), run, "mask")
    except InputError:  # the capture was deleted, or the run's options are none
        return None
    return f"{folder}/{CONTACT_SHEET}" if folder else None


def _page(template: str, request: Request, **content: Any) -> HTMLResponse:
    root = str(request.scope.get("root_path", "")) + "/"
    return HTMLResponse(_pages.get_template(template).render(root=root, **content), headers=_FRESH)


def _names(store: ArtifactStore, model: PublishedModel) -> set[str]:
    manifest = read_manifest(store, model.manifest.rpartition("/")[0])
    names = {entry.name for entry in manifest.files} if manifest else set()
    return names | {OBJ_ZIP} if "model.obj" in names else names


def _file(store: ArtifactStore, capture_id: str, name: str) -> Response:
    """Return a file of a capture's latest model; 404 if it has none of that name."""
    model = latest_model(store, capture_id)
    if model is None or name not in (names := _names(store, model)):
        raise HTTPException(404, f"capture {capture_id} has no published {name[:80]}")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if name == OBJ_ZIP:
        data = _zip(store, model, sorted(part for part in names if _OBJ_PART.fullmatch(part)))
    else:
        data = store.read_bytes(f"{model.files}/{name}")
    return Response(data, media_type=kind, headers=_SANDBOX)


def _zip(store: ArtifactStore, model: PublishedModel, names: list[str]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, store.read_bytes(f"{model.files}/{name}"))
    return data.getvalue()
