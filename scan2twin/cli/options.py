"""Options that several commands share, and how their texts become configuration."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from scan2twin.config import PipelineConfig, Preset, resolve_config
from scan2twin.errors import ConfigError
from scan2twin.fallback import Fallback, next_smaller
from scan2twin.progress import BarProgress, LogProgress, Progress

console = Console(stderr=True, highlight=False)  # standard output is for results

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar="SCAN2TWIN_STORE",
        help="Artifact store: a folder, or s3+http(s)://host:port with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
        "in the environment. Default: a folder among your user data.",
        show_default=False,
    ),
]
PresetOption = Annotated[Preset, typer.Option("--preset", help="How much time the model may take.")]
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        help='Overrides of the preset: JSON such as \'{"reconstruct": {"iterations": 500}}\', or a JSON file\'s path.',
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="One override, e.g. --set reconstruct.iterations=500. Repeatable.", show_default=False),
]
AllowSmallerOption = Annotated[
    bool,
    typer.Option(
        "--allow-smaller-preset/--no-allow-smaller-preset",
        help="Where memory runs out, use the next smaller preset, once.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]


def configuration(preset: Preset, config: str | None, assignments: list[str] | None = None) -> PipelineConfig:
    """Resolve `--preset`, `--config` and `--set` into one checked configuration.

    Raises:
        ConfigError: text that is not JSON, a malformed assignment, or an unknown section, key or value.

    """
    return resolve_config(preset, _overrides(config, assignments))


def allowed_fallback(
    allowed: bool, preset: Preset, config: str | None, assignments: list[str] | None = None
) -> Fallback | None:
    """Return what replaces `configuration(preset, config, assignments)` where memory runs out, if that is allowed."""
    return next_smaller(preset, _overrides(config, assignments)) if allowed else None


def _overrides(config: str | None, assignments: list[str] | None) -> dict[str, Any]:
    overrides = read_overrides(config) if config else {}
    for assignment in assignments or []:
        path, equals, value = assignment.partition("=")
        section, dot, key = path.partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(f"--set {assignment}: expected SECTION.KEY=VALUE, e.g. reconstruct.iterations=500")
        overrides.setdefault(section, {})[key] = _json_or_text(value)
    return overrides


def read_overrides(config: str) -> dict[str, Any]:
    """Read the value of `--config`: JSON text, or the path of a file with it. Raises ConfigError."""
    text, where = config, "--config"
    if not config.lstrip().startswith("{"):
        where = f"--config {config}"
        try:
            text = Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where}: neither JSON nor a readable file ({error})") from None
    try:
        overrides = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(overrides, dict):
        raise ConfigError(f"{where}: expected a JSON object of sections")
    return overrides


def _json_or_text(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def make_progress() -> Progress:
    """Return a bar on a terminal, plain log lines elsewhere."""
    return BarProgress(console) if console.is_terminal else LogProgress()


def print_json(value: Any) -> None:
    """Print `value` as one JSON document on standard output."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write(os.linesep)
