"""The scripts of recorder-app/e2e, which work the recorder and the pages in a real Chromium."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from plugins.api import RECORDER as BUILT

RECORDER = Path(__file__).parents[2] / "recorder-app"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or not (RECORDER / "node_modules").exists() or not BUILT.exists(),
    reason="needs Chromium and the built recorder (make recorder)",
)


def script(name: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a script of recorder-app/e2e and return the JSON it prints last."""
    done = subprocess.run(
        ["node_modules/.bin/tsx", f"e2e/{name}.ts", *arguments],
        cwd=RECORDER, env={**os.environ, "CHROMIUM": str(CHROMIUM)}, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed
