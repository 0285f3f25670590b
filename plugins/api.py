"""The ingest API: a phone that was paired sends one capture. Images never pass through here, only through the store.

Signed-in users pair and revoke; everything else needs the token of a pairing. Nothing is public but the files of the
recorder and of the pages, which hold no data.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import segno
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from plugins.limits import BodyLimit, Rate, RateLimiter
from plugins.sources import SourceFile, SourceOrder, commit_source, sign_source
from plugins.tokens import Pairing, TokenError, issue, verify
from plugins.uploads import (
    MAX_BATCH,
    Announcement,
    SignedUpload,
    UploadError,
    UploadFile,
    Uploads,
    UploadStatus,
    parse_document,
)
from plugins.views import ViewHost, view_routes
from scan2twin.capture.models import CAPTURE_ID_PATTERN
from scan2twin.errors import InputError, StoreError

log = logging.getLogger("scan2twin")

RECORDER = Path(__file__).parent / "static"  # what `make recorder` builds
PAGES = Path(__file__).parent / "pages"
UPLOAD_RATE = Rate(burst=60, per_second=4)  # of one pairing; a phone asks once for twelve files
FORGERY_RATE = Rate(burst=20, per_second=0.2)  # refused tokens of one address
RETRY_AFTER_S = 5  # while the store is away


@dataclass(frozen=True)
class Host:
    """What the API needs of the Airflow around it."""

    operator: Callable[..., str]  # FastAPI dependency: name of the signed-in user who may start runs, else 401 or 403
    uploads: Callable[[], Uploads]  # raises InputError where the store cannot take uploads
    signing_key: Callable[[], bytes]
    start_run: Callable[[str, str], str]  # of a capture, for a user; returns the run's id, the same every time
    public_url: Callable[[], str | None]  # how phones reach this server, where that differs from the request's address


class NewPairing(BaseModel):
    """What an operator gets to show to a phone."""

    id: str
    link: str
    qr_svg: str
    expires_at: datetime


class PairingState(BaseModel):
    """What became of a pairing."""

    state: Literal["waiting", "uploading", "complete", "revoked"]
    capture_id: str | None


class PairingOrder(BaseModel):
    """Nothing yet; a JSON body keeps other sites' forms out."""

    model_config = ConfigDict(extra="forbid")


class PresignOrder(BaseModel):
    """Files to be sent next."""

    model_config = ConfigDict(extra="forbid")

    files: list[UploadFile] = Field(min_length=1, max_length=MAX_BATCH)


class SignedUploads(BaseModel):
    """Where the files may be sent."""

    uploads: list[SignedUpload]


class Created(BaseModel):
    """The capture that the pairing is for from now on."""

    capture_id: str


class Completion(BaseModel):
    """The run that was started, or the files that must be sent again first."""

    run_id: str | None
    damaged: list[str]


class Fault(BaseModel):
    """Why a request was refused, in plain words."""

    detail: str


PairingId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{32}$")]
CaptureId = Annotated[str, PathParameter(pattern=CAPTURE_ID_PATTERN)]
_FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "it breaks a rule of the capture format, or no store takes uploads"},
    401: {"model": Fault, "description": "no token, a forged one, or one that has ended"},
    403: {"model": Fault, "description": "the pairing is for another capture, or the user may not start runs"},
    409: {"model": Fault, "description": "the capture is complete, or another one has its id"},
    413: {"model": Fault, "description": "over a limit of the capture format"},
    429: {"model": Fault, "description": "too many requests; Retry-After says how long to wait"},
    503: {"model": Fault, "description": "the store cannot be reached; Retry-After says how long to wait"},
}


def create_app(host: Host, views: ViewHost) -> FastAPI:
    """Return the ingest API, the pages and the recorder's files as an application to be mounted."""
    app = FastAPI(
        title="scan2twin ingest", version="1", description=__doc__, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_middleware(BodyLimit)
    app.add_exception_handler(UploadError, _upload_error)
    app.add_exception_handler(StoreError, _store_error)
    app.add_exception_handler(InputError, _input_error)
    app.include_router(_operator_routes(host), prefix="/api", tags=["operators"], responses=_FAULTS)
    app.include_router(_phone_routes(host), prefix="/api/captures", tags=["phones"], responses=_FAULTS)
    app.include_router(_page_routes(host))
    app.include_router(view_routes(views))
    app.mount("/pages", StaticFiles(directory=PAGES), name="pages")
    if RECORDER.is_dir():
        app.mount("/recorder", StaticFiles(directory=RECORDER, html=True), name="recorder")
    else:
        app.add_route("/recorder/", _not_built)
    return app


def _page_routes(host: Host) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/pair")
    def pair(user: Annotated[str, Depends(host.operator)]) -> FileResponse:
        """Show the page that pairs a phone."""
        return FileResponse(PAGES / "pair.html", headers={"Cache-Control": "no-store"})

    @router.get("/upload")
    def upload(user: Annotated[str, Depends(host.operator)]) -> FileResponse:
        """Show the page that sends a scan of another tool."""
        return FileResponse(PAGES / "upload.html", headers={"Cache-Control": "no-store"})

    return router


def _operator_routes(host: Host) -> APIRouter:
    router = APIRouter()
    Operator = Annotated[str, Depends(host.operator)]

    @router.post("/pairings", status_code=201)
    def pair(order: PairingOrder, user: Operator, request: Request) -> NewPairing:
        """Let a phone upload one capture in the name of the signed-in user."""
        host.uploads()  # no QR code for what cannot work
        pairing, token = issue(user, host.signing_key())
        server = host.public_url() or f"{request.url.scheme}://{request.url.netloc}"
        base = server.rstrip("/") + str(request.scope.get("root_path", ""))
        # The part after # stays in the browser: no log on the way has the token.
        link = f"{base}/recorder/#pair={token}"
        qr = segno.make(link, error="m").svg_inline(omitsize=True, border=4)
        return NewPairing(id=pairing.id, link=link, qr_svg=qr, expires_at=pairing.expires_at)

    @router.get("/pairings/{pairing_id}")
    def pairing_state(pairing_id: PairingId, user: Operator) -> PairingState:
        """Tell what became of a pairing."""
        uploads = host.uploads()
        capture_id = uploads.capture_of(pairing_id)
        if uploads.is_revoked(pairing_id):
            return PairingState(state="revoked", capture_id=capture_id)
        if capture_id is None:
            return PairingState(state="waiting", capture_id=None)
        complete = uploads.is_complete(capture_id)
        return PairingState(state="complete" if complete else "uploading", capture_id=capture_id)

    @router.delete("/pairings/{pairing_id}", status_code=204)
    def revoke(pairing_id: PairingId, user: Operator) -> None:
        """End a pairing now."""
        host.uploads().revoke(pairing_id)

    return router


def _phone_routes(host: Host) -> APIRouter:
    router = APIRouter()
    requests, forgeries = RateLimiter(UPLOAD_RATE), RateLimiter(FORGERY_RATE)
    bearer = HTTPBearer(auto_error=False, description="the token of a pairing")

    def paired(
        request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Pairing:
        try:
            pairing = verify(credentials.credentials if credentials else "", host.signing_key())
        except TokenError as error:
            _limit(forgeries, request.client.host if request.client else "")
            raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from None
        _limit(requests, pairing.id)
        if host.uploads().is_revoked(pairing.id):
            raise HTTPException(401, "this pairing was ended; scan a new QR code", {"WWW-Authenticate": "Bearer"})
        return pairing

    Paired = Annotated[Pairing, Depends(paired)]

    @router.post("", status_code=201)
    def create(announced: Announcement, pairing: Paired) -> Created:
        """Say which capture is coming. The pairing is for that one alone from now on."""
        return Created(capture_id=host.uploads().create(pairing, announced).capture_id)

    @router.post("/{capture_id}/presign")
    def presign(capture_id: CaptureId, order: PresignOrder, pairing: Paired) -> SignedUploads:
        """Get addresses to PUT files to: each for one name and one size, each for a file that is not there yet."""
        return SignedUploads(uploads=host.uploads().sign(pairing, capture_id, order.files))

    @router.post(
        "/{capture_id}/complete",
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": {
            "type": "object", "description": "capture.json of the capture format"}}}}},
    )  # fmt: skip
    async def complete(capture_id: CaptureId, request: Request, pairing: Paired) -> Completion:
        """Check every file against the capture.json in the body, commit the capture and start its run."""
        raw = await request.body()
        return await run_in_threadpool(_complete, host, pairing, capture_id, raw)

    @router.post("/{capture_id}/source")
    def sign_scan(capture_id: CaptureId, file: SourceFile, pairing: Paired) -> SignedUpload:
        """Get an address to PUT the file of another tool's scan to, in place of images."""
        return sign_source(host.uploads(), pairing, capture_id, file)

    @router.post("/{capture_id}/import")
    def import_scan(capture_id: CaptureId, order: SourceOrder, pairing: Paired) -> Completion:
        """Take the scan that was sent and start the run, whose first stage makes a capture of it."""
        if not commit_source(host.uploads(), pairing, capture_id, order):
            return Completion(run_id=None, damaged=[order.name])
        return Completion(run_id=host.start_run(capture_id, pairing.user), damaged=[])

    @router.get("/{capture_id}")
    def status(capture_id: CaptureId, pairing: Paired) -> UploadStatus:
        """Tell how far the upload is."""
        return host.uploads().status(pairing, capture_id)

    return router


def _complete(host: Host, pairing: Pairing, capture_id: str, raw: bytes) -> Completion:
    uploads = host.uploads()
    uploads.find(pairing, capture_id)  # before anything is read of a body from who has no right to send it
    document = parse_document(raw)
    if document.capture_id != capture_id:
        raise UploadError(400, f"capture_id: is {document.capture_id}, but the address says {capture_id}")
    if damaged := uploads.complete(pairing, document, raw):
        return Completion(run_id=None, damaged=damaged)
    return Completion(run_id=host.start_run(capture_id, pairing.user), damaged=[])


def _limit(limiter: RateLimiter, client: str) -> None:
    if wait_s := limiter.wait_s(client):
        raise HTTPException(429, "too many requests", {"Retry-After": str(math.ceil(wait_s))})


async def _not_built(request: Request) -> Response:
    return PlainTextResponse(
        "The recorder is not built on this server: run `make recorder` there, start it again.", 503
    )


def _upload_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, UploadError)
    return JSONResponse({"detail": str(error)}, error.status)


def _store_error(request: Request, error: Exception) -> Response:
    log.error("ingest: %s", error)
    return JSONResponse({"detail": "the store cannot be reached"}, 503, {"Retry-After": str(RETRY_AFTER_S)})


def _input_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 400)
