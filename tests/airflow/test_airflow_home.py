"""The folder of a local Airflow: which database it names, and what its processes may know."""

import configparser
from pathlib import Path

import pytest

from scan2twin.airflow_home import DATABASE_VARIABLE, AirflowHome, airflow_version

POSTGRES = "postgresql+psycopg2://airflow:secret@127.0.0.1/airflow"


def connection(home: AirflowHome) -> str:
    with home.locked():
        home.configure(8080)
    parser = configparser.RawConfigParser()
    parser.read(home.folder / "airflow.cfg")
    return parser["database"]["sql_alchemy_conn"]


def test_without_a_database_it_keeps_a_file_and_waits_for_its_lock(tmp_path: Path) -> None:
    home = AirflowHome(tmp_path)
    assert connection(home) == f"sqlite:///{tmp_path}/airflow.db?timeout=60"
    home.migrated()
    assert home.needs_migration()  # the file is gone
    (tmp_path / "airflow.db").touch()
    assert not home.needs_migration()


def test_another_database_is_migrated_too(tmp_path: Path) -> None:
    home = AirflowHome(tmp_path, POSTGRES)
    assert connection(home) == POSTGRES
    assert home.needs_migration()
    home.migrated()
    assert not home.needs_migration()
    assert AirflowHome(tmp_path, POSTGRES + "2").needs_migration()
    assert airflow_version() in (tmp_path / "database-version").read_text()
    assert (tmp_path / "database-version").stat().st_mode & 0o077 == 0


def test_the_databases_password_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, POSTGRES)
    monkeypatch.setenv("SCAN2TWIN_STORE", "kept")
    environment = AirflowHome(tmp_path, POSTGRES).environment()
    assert DATABASE_VARIABLE not in environment
    assert environment["SCAN2TWIN_STORE"] == "kept"
