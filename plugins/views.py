"""The pages that show what is in the store: a gallery of captures and models, and a run's model in a tab of the run."""

import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse

from scan2twin.capture.models import CAPTURE_ID_PATTERN
from scan2twin.store import ArtifactStore
from scan2twin.store.artifacts import read_manifest
from scan2twin.store.captures import CaptureLocation, list_captures
from scan2twin.store.models import PublishedModel, latest_model, list_models

REPORT, PREVIEW = "report.html", "preview.png"
MAX_SHOWN = 200  # the newest captures; the command `scan2twin captures` lists all
PAGE = Path(__file__).parent / "pages" / "gallery.html"
# The report runs its viewer, but as a site of its own: it can do nothing in the name of who looks at it.
_SANDBOX = {"Content-Security-Policy": "sandbox allow-scripts allow-downloads", "X-Content-Type-Options": "nosniff"}

NO_MODEL = "<p>There is no model yet. It appears here when the task <b>publish</b> is done.</p>"
NO_CAPTURES = "<p>No captures yet. Record one with a phone, or put one in with <code>scan2twin run</code>.</p>"

CaptureId = Annotated[str, PathParameter(pattern=CAPTURE_ID_PATTERN)]


@dataclass(frozen=True)
class ViewHost:
    """What the pages need of the Airflow around them."""

    reader: Callable[..., str]  # FastAPI dependency: name of the signed-in user who may see runs, else 401 or 403
    store: Callable[[], ArtifactStore]
    capture_of_run: Callable[[str], str | None]  # None if there is no such run


def view_routes(host: ViewHost) -> APIRouter:
    """Return the pages, each for readers only."""
    router = APIRouter(include_in_schema=False, dependencies=[Depends(host.reader)])

    @router.get("/gallery")
    def gallery(request: Request) -> HTMLResponse:
        store = host.store()
        captures = list_captures(store)[-MAX_SHOWN:][::-1]
        models = {model.capture_id: model for model in list_models(store)}
        return HTMLResponse(render_gallery(captures, models, _root(request)), headers={"Cache-Control": "no-store"})

    @router.get("/models/{capture_id}/{name}")
    def model_file(capture_id: CaptureId, name: str) -> Response:
        return _file(host.store(), capture_id, name)

    @router.get("/runs/{run_id:path}/model")
    def model_of_run(run_id: str, request: Request) -> Response:
        capture_id = host.capture_of_run(run_id)
        if capture_id is None or latest_model(store := host.store(), capture_id) is None:
            return HTMLResponse(_page(NO_MODEL, _root(request)))
        return _file(store, capture_id, REPORT)

    return router


def render_gallery(captures: list[CaptureLocation], models: dict[str, PublishedModel], root: str) -> str:
    """Return the page with a card for each capture, in the order given; `root` is the path of the application."""
    cards = "".join(_card(capture, models.get(capture.capture_id)) for capture in captures)
    return _page(f"<ul>{cards}</ul>" if cards else NO_CAPTURES, root)


def _card(capture: CaptureLocation, model: PublishedModel | None) -> str:
    name = escape(capture.capture_id)
    recorded = f"recorded {capture.recorded_on:%d %b %Y}"
    if model is None:
        return f"<li><div class=none>no model yet</div><strong>{name}</strong><small>{recorded}</small></li>"
    published = f"model of {model.published_at:%d %b %Y, %H:%M} UTC"
    return (
        f'<li><a href="models/{name}/{REPORT}"><img src="models/{name}/{PREVIEW}" alt="Model of {name}" loading="lazy">'
        f"<strong>{name}</strong></a><small>{recorded}</small><small>{published}</small></li>"
    )


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", "")) + "/"


def _page(content: str, root: str) -> str:
    return PAGE.read_text(encoding="utf-8").replace("{{ content }}", content).replace("{{ root }}", root)


def _file(store: ArtifactStore, capture_id: str, name: str) -> Response:
    """Return a file of a capture's latest model; 404 if it has none of that name."""
    model = latest_model(store, capture_id)
    manifest = None if model is None else read_manifest(store, model.manifest.rpartition("/")[0])
    if model is None or manifest is None or name not in {entry.name for entry in manifest.files}:
        raise HTTPException(404, f"capture {capture_id} has no published {name[:80]}")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(store.read_bytes(f"{model.files}/{name}"), media_type=kind, headers=_SANDBOX)
