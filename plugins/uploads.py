"""Captures that come in file by file, straight into the store: what may be sent, and when it counts as a capture.

What is known of an upload lies in the store too, so that any number of API servers can take part:

    uploads/pairings/<pairing id>.json    which capture a pairing is for; made once
    uploads/revoked/<pairing id>          the pairing was ended
    uploads/captures/<capture id>.json    name, day, notes, who; made once
    uploads/sources/<capture id>/…        another tool's scan that waits for its run: see `store.sources`

The files go to `captures/YYYY/MM/DD/<capture_id>/…`; there is no capture until `complete` writes capture.json there.
"""

import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from plugins.tokens import Pairing
from scan2twin.capture.models import (
    CAPTURE_ID_PATTERN,
    MAX_DOCUMENT_BYTES,
    MAX_FRAMES,
    MAX_UNPACKED_BYTES,
    CaptureDocument,
)
from scan2twin.capture.names import frame_name_fault, quoted
from scan2twin.capture.reader import CAPTURE_FILE, FRAMES_FILE, read_capture
from scan2twin.errors import CaptureError, MissingArtifactError, NotFoundError
from scan2twin.store.captures import CaptureLocation, find_capture
from scan2twin.store.s3 import S3Store
from scan2twin.store.sources import source_key
from scan2twin.store.transfer import parallel

MAX_BATCH = 24  # files whose uploads are signed at once
MAX_IMAGE_BYTES = 32 << 20  # a phone's JPEG of 50 MP has 15 MB
URL_LIFETIME = timedelta(minutes=15)  # a batch of twelve frames takes a slow uplink five
MAX_AGE = timedelta(days=366)  # older recordings come in by `scan2twin import`
MAX_AHEAD = timedelta(days=1)  # phones whose clock is wrong
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG (ITU-T T.81 B.1.1.3) and PNG (ISO 15948 5.2)

CaptureId = Annotated[str, Field(pattern=CAPTURE_ID_PATTERN)]


class UploadError(Exception):
    """A request that is refused; `status` is the HTTP status that says how."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        super().__init__(reason)


class Announcement(BaseModel):
    """What the phone says of a capture before it sends its files."""

    model_config = ConfigDict(extra="forbid")

    capture_id: CaptureId
    name: str = Field(max_length=200)
    recorded_at: AwareDatetime
    notes: str = Field("", max_length=2000)


class UploadFile(BaseModel):
    """A file that the phone wants to send."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=120)
    size: int = Field(gt=0, le=MAX_IMAGE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class SignedUpload(BaseModel):
    """Where one file may be sent: PUT with just these headers and a body of just the announced size."""

    name: str
    url: str
    headers: dict[str, str]


class UploadStatus(BaseModel):
    """How far an upload is."""

    capture_id: str
    state: Literal["uploading", "complete"]
    files: int
    bytes: int


class Upload(BaseModel):
    """What the store remembers of an upload."""

    capture_id: str
    name: str
    recorded_at: AwareDatetime
    notes: str
    user: str

    @property
    def folder(self) -> str:
        """The key prefix of the capture's files."""
        return CaptureLocation(self.capture_id, self.recorded_at.astimezone(UTC).date()).folder


class Uploads:
    """Uploads into `store`; phones reach it as `outside`, which may be the same."""

    def __init__(self, store: S3Store, outside: S3Store) -> None:
        self.store = store
        self._outside = outside

    def revoke(self, pairing_id: str) -> None:
        """End a pairing; what it uploaded stays."""
        self.store.put_bytes(f"uploads/revoked/{pairing_id}", b"revoked")

    def is_revoked(self, pairing_id: str) -> bool:
        """Tell whether a pairing was ended."""
        return self.store.exists(f"uploads/revoked/{pairing_id}")

    def capture_of(self, pairing_id: str) -> str | None:
        """Return the capture a pairing is for, or None while the phone has not said."""
        try:
            return self.store.read_bytes(_pairing_key(pairing_id)).decode()
        except NotFoundError:
            return None

    def create(self, pairing: Pairing, announced: Announcement) -> Upload:
        """Bind the pairing to a capture; again for the same capture, nothing changes. Raises UploadError."""
        now = datetime.now(UTC)
        if not now - MAX_AGE < announced.recorded_at < now + MAX_AHEAD:
            raise UploadError(400, f"recorded_at: {announced.recorded_at.isoformat()} cannot be; set the phone's clock")
        upload = Upload(**announced.model_dump(), user=pairing.user)
        if self.capture_of(pairing.id) not in (None, upload.capture_id):
            self._check_binding(pairing, upload.capture_id)
        key = _capture_key(upload.capture_id)
        if (raw := self._read(key)) is None:
            self._check_unused(upload.capture_id)  # a capture that came another way keeps its id
            self.store.put_bytes(key, upload.model_dump_json().encode(), if_absent=True)
            raw = self.store.read_bytes(key)
        present = Upload.model_validate_json(raw)
        if (present.user, present.folder) != (upload.user, upload.folder):
            raise UploadError(409, f"capture {upload.capture_id}: there is another one of this id; record it again")
        self.store.put_bytes(_pairing_key(pairing.id), upload.capture_id.encode(), if_absent=True)
        self._check_binding(pairing, upload.capture_id)  # another request may have been faster
        return present

    def sign(self, pairing: Pairing, capture_id: str, files: Sequence[UploadFile]) -> list[SignedUpload]:
        """Sign the uploads of some files. Raises UploadError."""
        upload = self.find(pairing, capture_id)
        if self.store.exists(f"{upload.folder}/{CAPTURE_FILE}"):
            raise UploadError(409, f"capture {capture_id} is complete; nothing can be added")
        names = [file.name for file in files]
        if faults := [f"{quoted(file.name)}: {fault}" for file in files if (fault := _fault(file))]:
            raise UploadError(400, "; ".join(faults))
        if len({name.lower() for name in names}) < len(names):
            raise UploadError(400, "files: a name stands twice")
        others = [stored for stored in self.store.list_objects(upload.folder) if _name(stored.key, upload) not in names]
        if len(others) + len(files) > MAX_FRAMES + 1:
            raise UploadError(413, f"capture {capture_id}: at most {MAX_FRAMES} frames")
        if sum(stored.size for stored in others) + sum(file.size for file in files) > MAX_UNPACKED_BYTES:
            raise UploadError(413, f"capture {capture_id}: more than {MAX_UNPACKED_BYTES} bytes; delete some frames")
        return [self.signed(f"{upload.folder}/{file.name}", file.name, file.size) for file in files]

    def complete(self, pairing: Pairing, document: CaptureDocument, raw: bytes) -> list[str]:
        """Check every file and write capture.json (`raw`); return the files that must be sent again, if any.

        What capture.json does not list is deleted, and what is damaged. Raises UploadError if the capture breaks the
        format; then it is not there, and can be completed another time.
        """
        upload = self.find(pairing, document.capture_id)
        committed = f"{upload.folder}/{CAPTURE_FILE}"
        if (present := self._read(committed)) is not None:
            return self._same(document.capture_id, present, raw)
        if document.recorded_at.astimezone(UTC).date() != upload.recorded_at.astimezone(UTC).date():
            raise UploadError(400, "recorded_at: another day than was announced")
        listed = {file.name: file for file in document.files}
        sizes = {_name(stored.key, upload): stored.size for stored in self.store.list_objects(upload.folder)}
        parallel(self.store.delete, [f"{upload.folder}/{name}" for name in sizes.keys() - listed.keys()])
        damaged = [name for name, file in listed.items() if sizes.get(name) != file.size]
        if not damaged:
            damaged = self._compare(upload, document, raw)
        if damaged:
            parallel(self.store.delete, [f"{upload.folder}/{name}" for name in damaged if name in sizes])
            return sorted(damaged)
        if not self.store.put_bytes(committed, raw, if_absent=True):
            return self._same(document.capture_id, self.store.read_bytes(committed), raw)
        return []

    def status(self, pairing: Pairing, capture_id: str) -> UploadStatus:
        """Tell how far an upload is. Raises UploadError."""
        upload = self.find(pairing, capture_id)
        stored = [item for item in self.store.list_objects(upload.folder) if not item.key.endswith(f"/{CAPTURE_FILE}")]
        complete = self.is_complete(capture_id)
        return UploadStatus(
            capture_id=capture_id, state="complete" if complete else "uploading", files=len(stored),
            bytes=sum(item.size for item in stored),
        )  # fmt: skip

    def is_complete(self, capture_id: str) -> bool:
        """Tell whether an upload has become a capture."""
        upload = self.details(capture_id)
        committed = upload and (f"{upload.folder}/{CAPTURE_FILE}", source_key(capture_id))
        return any(self.store.exists(key) for key in committed or ())

    def find(self, pairing: Pairing, capture_id: str) -> Upload:
        """Return an upload that `pairing` is for. Raises UploadError."""
        self._check_binding(pairing, capture_id)
        return Upload.model_validate_json(self.store.read_bytes(_capture_key(capture_id)))

    def details(self, capture_id: str) -> Upload | None:
        """Return what the phone said of a capture, or None if it came another way."""
        raw = self._read(_capture_key(capture_id))
        return None if raw is None else Upload.model_validate_json(raw)

    def _check_unused(self, capture_id: str) -> None:
        try:
            find_capture(self.store, capture_id)
        except MissingArtifactError:
            return
        raise UploadError(409, f"capture {capture_id}: there is another one of this id; record it again")

    def _check_binding(self, pairing: Pairing, capture_id: str) -> None:
        bound = self.capture_of(pairing.id)
        if bound != capture_id:
            reason = "is for another capture" if bound else "is for no capture yet; create it first"
            raise UploadError(403, f"this pairing {reason}; scan a new QR code for each capture")

    def _same(self, capture_id: str, present: bytes, raw: bytes) -> list[str]:
        if present != raw:
            raise UploadError(409, f"capture {capture_id} is complete already, with other content; record it again")
        return []

    def signed(self, key: str, name: str, size: int, lifetime: timedelta = URL_LIFETIME) -> SignedUpload:
        """Sign the upload of one file of `size` bytes to `key`."""
        # The store refuses another size, and never replaces a file: what `complete` has compared stays as it is.
        kept = {"If-None-Match": "*"}
        url = self._outside.signed_upload(key, {"Content-Length": str(size), **kept}, lifetime)
        return SignedUpload(name=name, url=url, headers=kept)

    def _compare(self, upload: Upload, document: CaptureDocument, raw: bytes) -> list[str]:
        """Return which files have other bytes than the document says. Raises UploadError if the format is broken."""
        with tempfile.TemporaryDirectory(prefix="scan2twin-upload-") as temporary:
            folder = Path(temporary)
            (folder / CAPTURE_FILE).write_bytes(raw)
            reasons: list[str] = []

            def is_damaged(name: str, sha256: str) -> bool:
                path = folder / name.replace("/", "_")
                if self.store.get_file(f"{upload.folder}/{name}", path) != sha256:
                    return True
                if name == FRAMES_FILE:
                    return False
                with path.open("rb") as file:
                    head = file.read(8)
                if not head.startswith(_MAGIC):
                    reasons.append(f"{name}: not a JPEG or PNG image")
                path.unlink()
                return False

            found = parallel(lambda file: is_damaged(file.name, file.sha256), document.files)
            damaged = [file.name for file, bad in zip(document.files, found, strict=True) if bad]
            if not damaged:
                try:
                    read_capture(folder)
                except CaptureError as error:
                    reasons += error.reasons
        if reasons:
            raise UploadError(400, "; ".join(reasons[:20]))
        return damaged

    def _read(self, key: str) -> bytes | None:
        try:
            return self.store.read_bytes(key)
        except NotFoundError:
            return None


def parse_document(raw: bytes) -> CaptureDocument:
    """Read what the phone sends as capture.json. Raises UploadError."""
    try:
        document = CaptureDocument.model_validate_json(raw)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors(include_url=False)[:20]]
        raise UploadError(400, "; ".join(reasons)) from None
    names = [file.name for file in document.files]
    if len(names) > MAX_FRAMES + 1 or len({name.lower() for name in names}) < len(names):
        raise UploadError(400, "files: too many, or a name stands twice")
    for name in names:
        if name != FRAMES_FILE and (fault := frame_name_fault(name)):
            raise UploadError(400, f"files: {quoted(name)}: {fault}")
    if FRAMES_FILE not in names:
        raise UploadError(400, f"files: {FRAMES_FILE} is not listed")
    return document


def _fault(file: UploadFile) -> str | None:
    if file.name == FRAMES_FILE:
        return None if file.size <= MAX_DOCUMENT_BYTES else f"at most {MAX_DOCUMENT_BYTES} bytes"
    return frame_name_fault(file.name)


def _name(key: str, upload: Upload) -> str:
    return key.removeprefix(f"{upload.folder}/")


def _pairing_key(pairing_id: str) -> str:
    return f"uploads/pairings/{pairing_id}.json"


def _capture_key(capture_id: str) -> str:
    return f"uploads/captures/{capture_id}.json"
