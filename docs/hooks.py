"""What the documentation site takes from the code itself: the stages with their options, and the licences."""

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from scan2twin.config import PRESETS, PipelineConfig, Section
from scan2twin.stages import CAPTURE, STAGES, Stage

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]+\)")  # to files of the repository that are no pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page that is generated."""
    files.append(File.generated(config, "stages.md", content=stage_reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the table of licences; keep only the words of links that leave the site."""
    return OUTSIDE_LINK.sub(r"\1", markdown).replace("<!-- licences -->", licence_table())


def stage_reference() -> str:
    """Return the page of every stage: what it reads, asks for and can be told."""
    lines = [
        "# Stages and options",
        "",
        "Generated from `scan2twin/stages.py` and `scan2twin/config.py`. Set an option with `--set STAGE.OPTION=VALUE`,"
        " with `--config FILE`, or in the trigger form of the DAG. The defaults are the preset `standard`.",
    ]
    for stage in STAGES:
        lines += ["", f"## {stage.name}", "", f"{stage.summary[0].upper()}{stage.summary[1:]}.", "", *_facts(stage)]
        lines += _options(stage.name, PipelineConfig().section(stage.name))
    return "\n".join(lines) + "\n"


def _facts(stage: Stage) -> list[str]:
    reads = ", ".join("the capture" if name == CAPTURE else f"`{name}`" for name in stage.inputs)
    ask = stage.resources
    return [
        f"- Module `{stage.module}`, version {stage.version}. Reads {reads}.",
        f"- Asks a cluster for {ask.cpu} CPUs, {ask.memory} of memory"
        + (f", {ask.gpu} GPU where there is one" if ask.gpu else "")
        + f", at most {ask.timeout_s // 60} minutes.",
    ]


def _options(stage: str, section: Section) -> list[str]:
    fields = type(section).model_fields
    if not fields:
        return ["", "It has no options."]
    lines = ["", "| option | default | what |", "|---|---|---|"]
    presets = {preset.value: values.get(stage, {}) for preset, values in PRESETS.items()}
    for name, field in fields.items():
        default = json.dumps(section.model_dump(mode="json")[name])
        others = "".join(f"<br>{preset}: `{values[name]}`" for preset, values in presets.items() if name in values)
        what = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | `{default}`{others} | {what} |")
    return lines


def licence_table() -> str:
    """Return a table of every library that scan2twin names itself, with the licence that its package states."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"every installation": project["dependencies"], **project["optional-dependencies"]}
    lines = ["| library | licence | installed with |", "|---|---|---|"]
    for group, requirements in groups.items():
        for requirement in requirements:
            name = re.split(r"[\[<>=! ;]", requirement)[0]
            lines.append(f"| {name} | {_licence(name)} | {group} |")
    return "\n".join(lines)


def _licence(name: str) -> str:
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed where this page was made"
    classifiers = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier") or [] if c.startswith("License ::")]
    stated = metadata.get("License-Expression") or next(iter(classifiers), "") or metadata.get("License") or ""
    return (stated.strip().splitlines() or ["see its package"])[0]
