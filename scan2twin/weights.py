"""Weights of networks that are not shipped: fetched at set-up into one folder and checked, never during a run."""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import urllib3

from scan2twin.errors import ConfigError, InputError, StoreError
from scan2twin.progress import Progress
from scan2twin.store import user_data_folder

WEIGHTS_VARIABLE = "SCAN2TWIN_WEIGHTS"
CHUNK_BYTES = 1 << 20
TIMEOUT = urllib3.Timeout(connect=10, read=60)  # seconds; `read` is between two pieces
RETRIES = urllib3.Retry(total=3, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504))
_DIGEST = {"sha256": re.compile(r"[0-9a-f]{64}"), "sha512": re.compile(r"[0-9a-f]{128}")}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}")


def weights_folder() -> Path:
    """Return $SCAN2TWIN_WEIGHTS, or else the folder `weights` of the user's data folder."""
    folder = os.environ.get(WEIGHTS_VARIABLE)
    return Path(folder) if folder else user_data_folder() / "weights"


def find_weights(name: str, option: str) -> Path:
    """Return the file that `option` of the configuration names: a path, or the name of a file in the weights folder.

    Raises:
        ConfigError: there is no such file.

    """
    by_path = Path(name).expanduser()
    if by_path.is_file():
        return by_path
    fetched = weights_folder() / name
    if by_path.name == name and fetched.is_file():
        return fetched
    raise ConfigError(
        f"{option}: {name}: no such file, neither as a path nor in {weights_folder()} (${WEIGHTS_VARIABLE}); fetch it "
        "with `scan2twin weights fetch URL --sha256 …`, or copy it there"
    )


def digest(path: Path, algorithm: str) -> str:
    """Return the hexadecimal `algorithm` digest of the file at `path`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def fetch_weights(url: str, algorithm: str, expected: str, progress: Progress, name: str | None = None) -> Path:
    """Fetch `url` into the weights folder and return the file; it is there whole and checked, or not at all.

    A file that is there with the `expected` digest ("sha256" or "sha512", hexadecimal) is not fetched again. `name`
    is the file's; by default the last part of the URL.

    Raises:
        InputError: the URL, name or digest is malformed, the server has no such file, or it has another digest.
        StoreError: the server cannot be reached, or breaks off each time.

    """
    expected = expected.strip().lower()
    if not _DIGEST[algorithm].fullmatch(expected):
        raise InputError(f"--{algorithm} {expected[:140]}: not a {algorithm.upper()} digest in hexadecimal digits")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url}: give an http:// or https:// address, or copy the file to {weights_folder()} yourself")
    name = name or unquote(PurePosixPath(parts.path).name)
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: not a usable file name; give one with --name")
    target = weights_folder() / name
    if target.is_file() and digest(target, algorithm) == expected:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{name}-{os.getpid()}.part")
    try:
        found = _download(url, partial, algorithm, progress)
        if found != expected:
            raise InputError(
                f"{url}: its {algorithm.upper()} is {found}, not {expected}; nothing was kept: check address and digest"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _download(url: str, target: Path, algorithm: str, progress: Progress) -> str:
    """Write what is at `url` to `target` and return its digest."""
    hasher = hashlib.new(algorithm)
    try:
        with urllib3.PoolManager(timeout=TIMEOUT, retries=RETRIES) as pool, target.open("wb") as file:
            answer = pool.request("GET", url, preload_content=False)
            if answer.status != 200:
                raise InputError(f"{url}: the server answers {answer.status} ({answer.reason}); check the address")
            size = int(answer.headers.get("Content-Length", 0))
            progress.start(f"fetching {PurePosixPath(urlsplit(url).path).name}, MB", size >> 20)
            for chunk in answer.stream(CHUNK_BYTES):
                hasher.update(chunk)
                file.write(chunk)
                progress.advance()
    except urllib3.exceptions.HTTPError as error:
        raise StoreError(f"{url}: cannot be fetched ({error}); nothing was kept: try again later") from error
    finally:
        progress.close()
    return hasher.hexdigest()
