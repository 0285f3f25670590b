"""What stands for the images of scan2twin: its real command line, with small stages in place of the real ones."""

import sys
from pathlib import Path

from cluster import HOLD_VARIABLE

from scan2twin.stages import STAGES

_PROGRAM = """#!{python}
import sys
from dataclasses import replace
sys.path.insert(0, {folder!r})
from scan2twin import stages
stages.STAGES = tuple(replace(stage, module="small_" + stage.name) for stage in stages.STAGES)
from scan2twin.cli.main import main
main()
"""
_STAGE = """
import json, os, time
from scan2twin.stages import StageResult

def run(inputs, outputs, config, progress):
    print("working", flush=True)
    if os.environ.get({hold!r}):
        time.sleep(600)
    read = {{name: sorted(path.name for path in folder.rglob("*")) for name, folder in inputs.folders.items()}}
    (outputs / "contact_sheet.jpg").write_bytes(b"a picture")
    (outputs / "read.json").write_text(json.dumps(read))
    return StageResult({{"stage": {name!r}}})
"""


def make_image(folder: Path) -> str:
    """Write the image's programs into `folder` and return the PATH for its containers."""
    folder.mkdir(parents=True)
    program = folder / "scan2twin"
    program.write_text(_PROGRAM.format(python=sys.executable, folder=str(folder)))
    program.chmod(0o755)
    for stage in STAGES:
        (folder / f"small_{stage.name}.py").write_text(_STAGE.format(hold=HOLD_VARIABLE, name=stage.name))
    return f"{folder}:/usr/bin:/bin"
