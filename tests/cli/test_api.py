"""The Python functions answer as the commands do."""

import json
from pathlib import Path

import pytest
import trimesh

from scan2twin import api
from scan2twin.errors import ConfigError, InputError

SPOT = Path(__file__).resolve().parents[1] / "data" / "spot-capture" / "capture"


def test_a_wrong_option_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"reconstruct\.speed: no such option"):
        api.reconstruct(SPOT, tmp_path / "out", config={"reconstruct": {"speed": 9}}, store=str(tmp_path / "store"))
    with pytest.raises(InputError, match="no such file or folder"):
        api.reconstruct(tmp_path / "nothing", tmp_path / "out", store=str(tmp_path / "store"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, "", "[]", "{}", "{broken"])
def test_a_folder_that_is_no_model_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=r"report\.json: not the report of a model"):
        api.open_model(tmp_path)


def test_a_model_folder_is_opened_and_measured(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"capture_id": "box", "size_m": [1, 1, 1]}))
    trimesh.creation.box(extents=(0.1, 0.2, 0.3)).export(tmp_path / "model.glb")
    model = api.open_model(str(tmp_path))
    assert (model.capture_id, model.glb) == ("box", tmp_path / "model.glb")
    assert api.measure(model.folder, points=[((0, 0, 0), (3, 4, 0))]).distances == [5]
    assert api.measure(str(model.glb)).volume == pytest.approx(0.006)


def test_a_scan_of_another_tool_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scan").mkdir()
    with pytest.raises(InputError):
        api.import_scan(tmp_path / "scan", tmp_path / "out")
    assert not (tmp_path / "out").exists()
