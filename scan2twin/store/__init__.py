"""The artifact store: one protocol, a folder or any S3 endpoint behind it."""

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from scan2twin.errors import ConfigError
from scan2twin.store.base import ArtifactStore, StoredObject
from scan2twin.store.directory import DirectoryStore

__all__ = ["STORE_VARIABLE", "ArtifactStore", "StoredObject", "default_store_uri", "open_store", "user_data_folder"]

STORE_VARIABLE = "SCAN2TWIN_STORE"


def user_data_folder() -> Path:
    """Return scan2twin's folder for the user's data: $XDG_DATA_HOME/scan2twin, else ~/.local/share/scan2twin."""
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "scan2twin"


def default_store_uri() -> str:
    """Return $SCAN2TWIN_STORE, or else the folder `store` of the user's data folder."""
    return os.environ.get(STORE_VARIABLE) or str(user_data_folder() / "store")


def open_store(uri: str | None = None) -> ArtifactStore:
    """Open the store at `uri`; without one, the default store.

    A path or `file:///path` is a folder. `s3+http://host:port` and `s3+https://host` (then optionally
    `/bucket-prefix`) are an S3 endpoint, with its credentials in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    Nothing is read or written yet. Raises ConfigError.
    """
    uri = uri or default_store_uri()
    if "://" not in uri:
        return DirectoryStore(Path(uri).expanduser())
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return DirectoryStore(Path(unquote(parts.path)))
    if parts.scheme in ("s3+http", "s3+https"):
        from scan2twin.store.s3 import S3Store  # the client takes a third of a second to import

        return S3Store(uri)
    raise ConfigError(
        f"store: {parts.scheme}://…: no such kind of store; use a folder, file:///folder, s3+http://host:port or "
        "s3+https://host"
    )
