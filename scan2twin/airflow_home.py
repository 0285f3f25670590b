"""The folder of a local Airflow: its settings, secrets, database and logs."""

import configparser
import fcntl
import importlib.metadata
import io
import json
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from scan2twin.errors import ConfigError, InputError

HOST = "127.0.0.1"  # nothing of a local Airflow is reachable from another machine
USER = "admin"
DATABASE_VARIABLE = "SCAN2TWIN_DATABASE"  # holds a password: no process of Airflow, and so no stage, inherits it
LOCK_TIMEOUT_S = 60  # how long a process waits for another that writes; SQLite's own 5 s are short on a busy machine
# The DAGs lie beside this package, in a checkout as in an installation.
DAGS = Path(__file__).resolve().parents[1] / "dags"


@dataclass(frozen=True)
class Secrets:
    """What a local Airflow keeps to itself; made once, so that logins and saved connections survive a restart."""

    password: str  # of the user `admin`
    fernet_key: str
    jwt_secret: str
    session_key: str


class AirflowHome:
    """An AIRFLOW_HOME that belongs to scan2twin.

    `database_url` is a database of its own on a PostgreSQL server; without one Airflow keeps a SQLite file here.
    """

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self.folder = folder.absolute()
        self.logs = self.folder / "logs"
        self.sqlite = None if database_url else self.folder / "airflow.db"
        self.database_url = database_url or f"sqlite:///{self.sqlite}?timeout={LOCK_TIMEOUT_S}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process alone. Raises InputError if another one has it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.logs.mkdir(exist_ok=True)
        with (self.folder / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise InputError(
                    f"{self.folder}: a local Airflow already runs here (process {lock.read().strip() or 'unknown'}); "
                    "end it first, or name another folder with --home"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def configure(self, port: int) -> Secrets:
        """Write airflow.cfg for an API server on `port` and return the secrets in it."""
        kept = self._secrets()
        passwords = self.write_private("passwords.json", json.dumps({USER: kept.password}))
        self.write_private("airflow.cfg", _config_text(_settings(self, kept, passwords, port)))
        return kept

    def needs_migration(self) -> bool:
        """Tell whether the database is missing or was last migrated by another Airflow."""
        marker = self._migration_marker
        missing = self.sqlite is not None and not self.sqlite.exists()
        return missing or not marker.exists() or marker.read_text() != self._migration

    def migrated(self) -> None:
        """Remember that the database fits the installed Airflow."""
        self.write_private(self._migration_marker.name, self._migration)

    def environment(self) -> dict[str, str]:
        """Return this process's environment for Airflow's commands: airflow.cfg alone decides, nothing inherited."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.lstrip("_").startswith("AIRFLOW") and name != DATABASE_VARIABLE
        }
        return inherited | {"AIRFLOW_HOME": str(self.folder)}

    def task_log(self, dag_id: str, run_id: str, task_id: str, attempt: int) -> Path:
        """Return the file in which Airflow keeps a task's log, one JSON object a line."""
        return self.logs / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={task_id}" / f"attempt={attempt}.log"

    def write_private(self, name: str, text: str) -> Path:
        """Write a file that only this user can read, in one step, and return its path."""
        path, beside = self.folder / name, self.folder / f".{name}.part"
        beside.touch(mode=0o600)
        beside.write_text(text, encoding="utf-8")
        return beside.replace(path)

    @property
    def _migration_marker(self) -> Path:
        return self.folder / "database-version"

    @property
    def _migration(self) -> str:
        return f"{airflow_version()} {self.database_url}"

    def _secrets(self) -> Secrets:
        path = self.folder / "secrets.json"
        if path.exists():
            return Secrets(**json.loads(path.read_text()))
        made = Secrets(
            password=secrets.token_urlsafe(12),
            fernet_key=urlsafe_b64encode(secrets.token_bytes(32)).decode(),  # Fernet keys are 32 bytes, url-safe base64
            jwt_secret=secrets.token_urlsafe(48),
            session_key=secrets.token_urlsafe(48),
        )
        self.write_private(path.name, json.dumps(asdict(made)))
        return made


def airflow_version() -> str:
    """Return the installed Airflow's version. Raises ConfigError if there is none."""
    try:
        return importlib.metadata.version("apache-airflow-core")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("Airflow is not installed here; install it with: pip install 'scan2twin[airflow]'") from None


def _settings(home: AirflowHome, kept: Secrets, passwords: Path, port: int) -> dict[str, dict[str, object]]:
    url = f"http://{HOST}:{port}"
    return {
        "core": {
            "dags_folder": DAGS,
            "load_examples": False,
            "executor": "LocalExecutor",
            "parallelism": 4,  # each is a waiting process of its own
            "dagbag_import_timeout": 120,  # a tenth of a second, but not on a machine that does other work
            "fernet_key": kept.fernet_key,
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_passwords_file": passwords,
            "execution_api_server_url": f"{url}/execution/",
        },
        "database": {"sql_alchemy_conn": home.database_url},
        "api": {
            "host": HOST,
            "port": port,
            "base_url": url,
            "workers": 1,
            "secret_key": kept.session_key,
            "instance_name": "scan2twin",
        },
        "api_auth": {"jwt_secret": kept.jwt_secret},
        "logging": {"base_log_folder": home.logs, "colored_console_log": False},
        "scheduler": {
            "scheduler_idle_sleep_time": 0.2,  # one person waits for each run
            # Recovery from a killed Airflow within a minute; the defaults take five.
            "orphaned_tasks_check_interval": 10,
            "scheduler_health_check_threshold": 15,
            "task_instance_heartbeat_timeout": 60,
        },
        "workers": {
            # Airflow's supervisor may notice only at its next heartbeat that a task has ended.
            "min_heartbeat_interval": 1,
            "execution_api_timeout": 60,  # the first answers take their time on a small machine
        },
        "dag_processor": {"parsing_processes": 1, "dag_file_processor_timeout": 180},
    }


def _config_text(settings: dict[str, dict[str, object]]) -> str:
    parser = configparser.RawConfigParser()
    for section, values in settings.items():
        # Airflow interpolates percent signs when it reads the file.
        parser[section] = {name: str(value).replace("%", "%%") for name, value in values.items()}
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
