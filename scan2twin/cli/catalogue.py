"""`scan2twin captures` and `scan2twin models`: what the store holds."""

from rich.table import Table

from scan2twin.cli.options import JsonOption, StoreOption, console, print_json
from scan2twin.store import open_store
from scan2twin.store.captures import list_captures
from scan2twin.store.models import latest_model, list_models


def captures(store: StoreOption = None, json_: JsonOption = False) -> None:
    """List the captures in the store, oldest first, and whether each has a model."""
    artifacts = open_store(store)
    rows = [
        {
            "capture_id": capture.capture_id,
            "recorded_on": capture.recorded_on.isoformat(),
            "model": latest_model(artifacts, capture.capture_id) is not None,
        }
        for capture in list_captures(artifacts)
    ]
    if json_:
        print_json(rows)
        return
    table = Table("capture", "recorded on (UTC)", "model", box=None)
    for row in rows:
        table.add_row(str(row["capture_id"]), str(row["recorded_on"]), "published" if row["model"] else "–")
    console.print(table if rows else f"no captures in {artifacts.uri}; `scan2twin run CAPTURE --out DIR` brings one in")


def models(store: StoreOption = None, json_: JsonOption = False) -> None:
    """List the latest published model of every capture."""
    artifacts = open_store(store)
    found = list_models(artifacts)
    if json_:
        print_json([model.model_dump(mode="json") for model in found])
        return
    table = Table("capture", "published at (UTC)", "files", box=None)
    for model in found:
        table.add_row(model.capture_id, f"{model.published_at:%Y-%m-%d %H:%M}", f"{artifacts.uri}/{model.files}")
    console.print(table if found else f"no models in {artifacts.uri}; `scan2twin run CAPTURE --out DIR` makes one")
