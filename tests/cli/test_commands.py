"""The command line as a user meets it: real processes, exit codes, one message, nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trimesh

SPOT = Path(__file__).resolve().parents[1] / "data" / "spot-capture" / "capture"


def scan2twin(*arguments: str, store: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "scan2twin", *arguments, "--store", str(store)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def broken_capture(tmp_path: Path) -> Path:
    capture = tmp_path / "broken"
    shutil.copytree(SPOT, capture)
    frames = (capture / "frames.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (capture / "frames.jsonl").write_text("".join(frames[:5]), encoding="utf-8")
    return capture


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "reconstruct.iterations=many"], "config: reconstruct.iterations:"),
        (["--set", "reconstruct.speed=9"], "config: reconstruct.speed: no such option"),
        (["--set", "nonsense"], "--set nonsense: expected SECTION.KEY=VALUE"),
        (["--config", '{"mask": 3}'], "config: mask: expected a section"),
        (["--config", "{"], "--config: not JSON"),
        (["--config", "/no/such/file.json"], "neither JSON nor a readable file"),
    ],
)
def test_a_wrong_configuration_is_refused(tmp_path: Path, store: Path, arguments: list[str], said: str) -> None:
    answer = scan2twin("run", str(SPOT), "--out", str(tmp_path / "out"), *arguments, store=store)
    assert answer.returncode == 2
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not store.exists()
    assert not (tmp_path / "out").exists()


def test_a_missing_capture_is_refused(tmp_path: Path, store: Path) -> None:
    answer = scan2twin("run", str(tmp_path / "nothing"), "--out", str(tmp_path / "out"), store=store)
    assert answer.returncode == 2
    assert "no such file or folder" in answer.stderr


def test_a_broken_capture_is_refused_with_every_reason(tmp_path: Path, store: Path, broken_capture: Path) -> None:
    (broken_capture / "images" / "000002.jpg").unlink()
    answer = scan2twin("run", str(broken_capture), "--out", str(tmp_path / "out"), store=store)
    assert answer.returncode == 2
    assert "frames.jsonl" in answer.stderr
    assert "images/000002.jpg" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()
    assert json.loads(scan2twin("captures", "--json", store=store).stdout) == []


def test_a_stage_asks_for_the_stages_before_it(store: Path) -> None:
    from scan2twin.runner import import_capture
    from scan2twin.store import open_store

    capture_id = import_capture(open_store(str(store)), SPOT)
    answer = scan2twin("stage", "mask", "--capture", capture_id, store=store)
    assert answer.returncode == 2
    assert "validate" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_a_stage_writes_its_result_and_is_then_skipped(tmp_path: Path, store: Path) -> None:
    from scan2twin.runner import import_capture
    from scan2twin.store import open_store

    capture_id = import_capture(open_store(str(store)), SPOT)
    result = tmp_path / "result.json"
    answers = []
    for _ in range(2):
        done = scan2twin("stage", "validate", "--capture", capture_id, "--result", str(result), "--json", store=store)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == json.loads(result.read_text(encoding="utf-8"))
        answers.append(json.loads(result.read_text(encoding="utf-8")))
    assert [answer["skipped"] for answer in answers] == [False, True]
    assert answers[0]["fingerprint"] == answers[1]["fingerprint"]
    manifest = Path(answers[0]["manifest"].removeprefix("file://"))
    assert json.loads(manifest.read_text(encoding="utf-8"))["stage"] == "validate"
    listed = json.loads(scan2twin("captures", "--json", store=store).stdout)
    assert [(row["capture_id"], row["model"]) for row in listed] == [(capture_id, False)]


def test_an_unreachable_store_asks_to_try_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    answer = subprocess.run(
        [sys.executable, "-m", "scan2twin", "captures", "--store", "s3+http://127.0.0.1:9"],  # discard: none listens
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 3
    assert "127.0.0.1:9" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_doctor_answers_in_json(store: Path) -> None:
    answer = scan2twin("doctor", "--json", store=store)
    checks = {check["name"]: check for check in json.loads(answer.stdout)}
    failed = {name: check["detail"] for name, check in checks.items() if check["required"] and not check["ok"]}
    assert failed == {}
    assert answer.returncode == 0
    assert {"store", "rasteriser", "mask weights", "GPU", "nvdiffrast", "kubernetes"} <= checks.keys()


@pytest.mark.parametrize(
    ("figures", "said"),
    [((26.44, 0.9831), "PSNR 26.4 dB on the object, mask IoU 0.983"), ((None, None), "none held out")],
)
def test_the_summary_says_how_good_the_model_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], figures: tuple[float | None, float | None], said: str
) -> None:
    from scan2twin.cli.pipeline import summarise

    report = {"size_m": [0.1, 0.2, 0.3], "metric": True, "triangles": 9}
    summarise(report | dict(zip(("heldout_psnr_foreground", "mask_iou_heldout"), figures, strict=True)), tmp_path, 1.0)
    assert said in " ".join(capsys.readouterr().err.split())


def test_measure_and_compare_answer(tmp_path: Path, store: Path) -> None:
    for name, size in (("a.stl", 100.0), ("b.stl", 101.0)):
        trimesh.creation.icosphere(subdivisions=2, radius=size).export(tmp_path / name)
    environment = {**os.environ, "COLUMNS": "200"}

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "scan2twin", *arguments]
        return subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    found = json.loads(command("measure", "a.stl", "--unit", "mm", "--distance", "0,0,0:0,0,1", "--json").stdout)
    assert found["size"] == pytest.approx([0.2, 0.2, 0.2], rel=0.01)
    assert found["distances"] == [1.0]
    assert "closed" in command("measure", "a.stl").stderr
    units = ("--unit-a", "mm", "--unit-b", "mm", "--align", "none")
    found = json.loads(command("compare", "a.stl", "b.stl", *units, "--map", "map.glb", "--json").stdout)
    assert found["mean_signed"] == pytest.approx(-0.001, rel=0.05)
    assert (tmp_path / "map.glb").is_file()
    for arguments in (("measure", "none.stl"), ("measure", "a.stl", "--distance", "1,2:3"), ("compare", "a.stl", "c")):
        answer = command(*arguments)
        assert answer.returncode == 2
        assert answer.stderr.startswith("error: ")
        assert "Traceback" not in answer.stderr
