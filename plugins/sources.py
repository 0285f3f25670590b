"""Another tool's scan sent as one file, straight into the store, in place of a capture's images."""

from datetime import timedelta
from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, field_validator

from plugins.tokens import Pairing
from plugins.uploads import SignedUpload, Upload, UploadError, Uploads
from scan2twin.capture.reader import CAPTURE_FILE
from scan2twin.store.sources import MAX_SOURCE_BYTES, SOURCE_SUFFIXES, Source, file_key, source_key

URL_LIFETIME = timedelta(hours=2)  # 2 GiB over a slow uplink of 3 Mbit/s; checked when the upload begins


class SourceFile(BaseModel):
    """The file that is to be sent."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(max_length=200, description=f"as its owner has it; ends in one of {', '.join(SOURCE_SUFFIXES)}")
    size: int = Field(gt=0, le=MAX_SOURCE_BYTES)

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if PurePosixPath(name).suffix.lower() not in SOURCE_SUFFIXES:
            raise ValueError(f"expected a scan as one file that ends in one of {', '.join(SOURCE_SUFFIXES)}")
        return name

    @property
    def suffix(self) -> str:
        """What tells the kind of file."""
        return PurePosixPath(self.name).suffix.lower()


class SourceOrder(SourceFile):
    """The file that was sent, and what only its sender knows."""

    metres_per_unit: float | None = Field(None, ge=1e-6, le=1e6, description="where the scan has no true size")


def sign_source(uploads: Uploads, pairing: Pairing, capture_id: str, file: SourceFile) -> SignedUpload:
    """Sign the upload of a scan. Raises UploadError."""
    upload = uploads.find(pairing, capture_id)
    _check_unfinished(uploads, upload)
    return uploads.signed(file_key(capture_id, file.suffix), file.name, file.size, URL_LIFETIME)


def commit_source(uploads: Uploads, pairing: Pairing, capture_id: str, order: SourceOrder) -> bool:
    """Let the run import the scan that was sent; return False if it has to be sent again. Raises UploadError."""
    upload = uploads.find(pairing, capture_id)
    source = Source(
        capture_id=capture_id, suffix=order.suffix, size=order.size, recorded_at=upload.recorded_at,
        metres_per_unit=order.metres_per_unit,
    )  # fmt: skip
    if uploads.store.exists(f"{upload.folder}/{CAPTURE_FILE}"):  # imported: the answer to an earlier request was lost
        return True
    sizes = {stored.key: stored.size for stored in uploads.store.list_objects(source.key.rpartition("/")[0])}
    if source_key(capture_id) in sizes:
        return True
    if sizes.get(source.key) != order.size:
        uploads.store.delete(source.key)  # another size cannot replace it
        return False
    uploads.store.put_bytes(source_key(capture_id), source.model_dump_json().encode(), if_absent=True)
    return True


def _check_unfinished(uploads: Uploads, upload: Upload) -> None:
    if uploads.is_complete(upload.capture_id):
        raise UploadError(409, f"capture {upload.capture_id} is complete; nothing can be added")
    if any(uploads.store.list_objects(upload.folder)):
        raise UploadError(409, f"capture {upload.capture_id}: images of it were sent already; announce another one")
