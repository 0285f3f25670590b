"""Airflow reads its home folder when it is first imported, so it is chosen before any test imports it."""

import os
import tempfile

import pytest

_HOME = tempfile.TemporaryDirectory(prefix="scan2twin-airflow-tests-")
os.environ["AIRFLOW_HOME"] = _HOME.name
os.environ["AIRFLOW__CORE__LOAD_EXAMPLES"] = "False"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SCAN2TWIN_")]:
        monkeypatch.delenv(name)
