"""A pipeline of four small stages, written to a folder of modules; also run as a script, to be killed.

python tiny_pipeline.py STORE CAPTURE_ID WORKDIR        (with the folder of modules on PYTHONPATH)
"""

import sys
from pathlib import Path

from scan2twin import stages
from scan2twin.config import resolve_config
from scan2twin.progress import LogProgress
from scan2twin.stages import CAPTURE, Stage

NAMES = ("validate", "condition", "export", "publish")
STAGES = (
    Stage("validate", "tiny_validate", (CAPTURE,), ""),
    Stage("condition", "tiny_condition", (CAPTURE, "validate"), ""),
    Stage("export", "tiny_export", ("condition",), ""),
    Stage("publish", "tiny_publish", ("export",), "", publishes=True),
)

CALLS_VARIABLE = "TINY_CALLS"  # file to which every call of a stage adds a line with its name
HOLD_VARIABLE = "TINY_HOLD"  # the stage that writes half of its output and then waits to be killed

MODULE = """
import json, os, time
from pathlib import Path
from scan2twin.stages import StageResult

def run(inputs, outputs, config, progress):
    with Path(os.environ["TINY_CALLS"]).open("a") as calls:
        calls.write("NAME\\n")
    (outputs / "sub").mkdir()
    (outputs / "sub" / "first.txt").write_text("NAME of " + ", ".join(inputs.folders))
    if os.environ.get("TINY_HOLD") == "NAME":
        print("holding", flush=True)
        time.sleep(60)
    BODY
    (outputs / "inputs.json").write_text(json.dumps({
        "files": {name: sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
                  for name, folder in inputs.folders.items()},
        "manifests": {name: manifest["metrics"] for name, manifest in inputs.manifests.items()},
        "fingerprints": {name: manifest["fingerprint"] for name, manifest in inputs.manifests.items()},
        "config": config.model_dump(mode="json"),
    }))
    return StageResult({"stage": "NAME"}, ["NAME warns"])
"""


def write_modules(folder: Path, bodies: dict[str, str] | None = None) -> None:
    """Write the stages' modules to `folder`; `bodies` adds a statement to some of them."""
    for name in NAMES:
        body = (bodies or {}).get(name, "pass")
        (folder / f"tiny_{name}.py").write_text(MODULE.replace("NAME", name).replace("BODY", body))


def main() -> None:
    from scan2twin.runner import run_pipeline
    from scan2twin.store import open_store

    stages.STAGES = STAGES
    uri, capture_id, workdir = sys.argv[1:]
    runs = run_pipeline(
        open_store(uri), capture_id, resolve_config("standard", {}), LogProgress(), workdir=Path(workdir)
    )
    print("skipped", [run.manifest.stage for run in runs if run.skipped])
    print("imported", [name for name in sys.modules if name in ("torch", "numba", "cv2") or name.startswith("tiny_")])


if __name__ == "__main__":
    main()
