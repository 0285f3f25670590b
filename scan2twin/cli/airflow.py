"""`scan2twin up` and `scan2twin demo`: a whole local Airflow, started and ended with the command."""

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from scan2twin.airflow_follow import RunFollower
from scan2twin.airflow_home import DATABASE_VARIABLE, USER, AirflowHome
from scan2twin.airflow_server import COMPONENTS, TRIGGERER, LocalAirflow
from scan2twin.cli.options import ConfigOption, PresetOption, console, read_overrides
from scan2twin.cli.pipeline import summarise
from scan2twin.config import Preset, resolve_config
from scan2twin.errors import InputError, Scan2TwinError
from scan2twin.runner import fetch_model, import_capture
from scan2twin.s3server import EmbeddedS3
from scan2twin.store import STORE_VARIABLE, open_store, user_data_folder

DAG_ID = "reconstruct_capture"
UI_PORT = 8080
CHECK_INTERVAL_S = 1.0
SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "skull"

LocalStoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="Artifact store, as for the other commands. Default: an S3 server of its own, kept in the home folder.",
        show_default=False,
    ),
]


def up(
    captures: Annotated[
        list[Path] | None, typer.Argument(help="Capture bundles to put into the store first.", show_default=False)
    ] = None,
    store: LocalStoreOption = None,
    home: Annotated[
        Path | None,
        typer.Option("--home", help="Where runs and logs are kept. Default: among your user data.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of Airflow's pages.")] = UI_PORT,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            envvar=DATABASE_VARIABLE,
            help="postgresql+psycopg2://… of a database for Airflow alone. Default: a SQLite file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run Airflow with its web pages, and an S3 store, on this machine only. Ctrl-C ends all of it."""
    folder = AirflowHome(home or user_data_folder() / "airflow", database)
    with _signals_interrupt(), folder.locked(), _store(store, folder) as variables:
        for capture in captures or []:
            console.print(f"capture {import_capture(open_store(), capture)} is in the store")
        with LocalAirflow(folder, {}, port=port, components=(*COMPONENTS, TRIGGERER)) as airflow:
            with console.status("starting Airflow …"):
                airflow.wait_until_ready(DAG_ID)
            console.print(
                f"[bold green]ready[/] {airflow.url}/dags/{DAG_ID}\n"
                f"  user      {USER}\n  password  {airflow.password}\n"
                f"  store     {os.environ[STORE_VARIABLE]}; in another shell: source {shlex.quote(str(variables))}\n"
                "Ctrl-C ends all of it."
            )
            while True:
                time.sleep(CHECK_INTERVAL_S)
                airflow.check()


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model and its report.")],
    capture: Annotated[
        Path, typer.Option("--capture", help="Capture bundle: a folder or a .zip.", show_default="the sample")
    ] = SAMPLE,
    preset: PresetOption = Preset.STANDARD,
    config: ConfigOption = None,
    store: LocalStoreOption = None,
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            help="Where runs and logs are kept; unfinished runs there are ended. Default: among your user data.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Take a capture through the Airflow DAG, everything started and ended here, and leave the model in a folder."""
    overrides = read_overrides(config) if config else {}
    resolve_config(preset, overrides)  # refuses here what the first stage would refuse later
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: this is a file; name a folder")
    started = time.monotonic()
    folder = AirflowHome(home or user_data_folder() / "demo")
    with _signals_interrupt(), folder.locked(), _store(store, folder):
        capture_id = import_capture(open_store(), capture)
        # Someone is watching: a failure is shown now instead of being tried again.
        with LocalAirflow(folder, {"SCAN2TWIN_RETRIES": "0"}) as airflow:
            with console.status("starting Airflow …"):
                airflow.wait_until_ready(DAG_ID)
            console.print(f"Airflow is ready after {time.monotonic() - started:.0f} s")
            _run(airflow, {"capture_id": capture_id, "preset": str(preset), "overrides": overrides})
        fetch_model(open_store(), capture_id, out)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    summarise(report, out, round(time.monotonic() - started, 1))


def _run(airflow: LocalAirflow, conf: dict[str, object]) -> None:
    """Run the DAG and show its tasks' logs. Raises Scan2TwinError if it fails."""
    run_id = f"{conf['capture_id']}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    airflow.api.fail_unfinished_runs(DAG_ID)  # of a demo that was cut short
    airflow.api.set_paused(DAG_ID, False)
    airflow.api.trigger(DAG_ID, run_id, conf)
    follower = RunFollower(airflow, DAG_ID, run_id)
    state, shown = "queued", ""
    while state not in ("success", "failed"):
        time.sleep(CHECK_INTERVAL_S)
        airflow.check()
        state = airflow.api.run_state(DAG_ID, run_id)  # before the logs, so that the last lines are seen
        for task, line in follower.new_lines():
            if task != shown:
                shown = task
                console.print(f"[bold]{task}[/]")
            console.print(f"    {line}", markup=False, soft_wrap=True)
    if state == "failed":
        raise Scan2TwinError(f"stage {shown} failed, see its lines above; all logs: {airflow.home.logs}")


@contextmanager
def _store(uri: str | None, home: AirflowHome) -> Iterator[Path]:
    """Provide the store in this process's environment; yield a file that does the same for a shell."""
    if uri:
        variables = {STORE_VARIABLE: uri}
        yield _announce(variables, home)
        return
    with EmbeddedS3(home.folder / "store") as s3:
        yield _announce({STORE_VARIABLE: s3.uri, **s3.environment}, home)


def _announce(variables: dict[str, str], home: AirflowHome) -> Path:
    os.environ.update(variables)
    return home.write_private(
        "store.env", "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
    )


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Let SIGTERM and a closed terminal end everything as Ctrl-C does, and let nothing cut the ending short."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the ending takes seconds and has its own limit
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    yield
