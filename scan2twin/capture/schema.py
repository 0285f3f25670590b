"""JSON Schemas of the capture format, made from the models: `python -m scan2twin.capture.schema` writes them.

Recorders in other languages check their output with them. What a JSON Schema cannot say (unit quaternions,
order of frames, hashes) is checked by the reader.
"""

import json
from pathlib import Path
from typing import Any

from scan2twin.capture.models import CaptureDocument, FrameRecord, Record

FOLDER = Path(__file__).parent


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return file name → JSON Schema (draft 2020-12) of capture.json and of one line of frames.jsonl."""
    models: dict[str, type[Record]] = {"capture.schema.json": CaptureDocument, "frame.schema.json": FrameRecord}
    return {
        name: {"$schema": "https://json-schema.org/draft/2020-12/schema"} | model.model_json_schema()
        for name, model in models.items()
    }


def schema_text(schema: dict[str, Any]) -> str:
    """Return the text of a schema's file."""
    return json.dumps(schema, indent=1) + "\n"


if __name__ == "__main__":
    for name, schema in json_schemas().items():
        (FOLDER / name).write_text(schema_text(schema), encoding="utf-8")
