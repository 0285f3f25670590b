import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scan2twin.cli.benchmark import app
from scan2twin.store import open_store
from scan2twin.store.benchmark import FILE_BYTES, benchmark_store


def test_measures_the_store_and_leaves_it_empty(store_uri: str) -> None:
    figures = benchmark_store(store_uri, total_bytes=10 * FILE_BYTES)
    assert (figures["files"], figures["megabytes"]) == (10, 5.0)
    for way in ("upload", "download"):
        ratio = figures[f"{way}_mb_s"] / figures[f"raw_{way}_mb_s"]
        assert figures[f"{way}_ratio"] == pytest.approx(ratio)
        assert ratio > 0
    assert list(open_store(store_uri).list_objects("artifacts")) == []


def test_the_command_prints_the_figures(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["store", "--store", str(tmp_path), "--megabytes", "2", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["files"] == 4
