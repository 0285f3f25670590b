"""The Kubernetes runner under a real Airflow with a real S3 server, on an API double that really runs the pods.

The tests share one Airflow; each has a capture of its own.
"""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from api_double import Refusal
from cluster import Fault
from fault_proxy import Fault as StoreFault
from studio import DAG_ID, LIMIT_S, Studio

from scan2twin.airflow_server import AirflowError
from scan2twin.config import resolve_config
from scan2twin.runner import import_capture
from scan2twin.stages import STAGES
from scan2twin.store.artifacts import read_manifest
from scan2twin.store.models import latest_model

pytestmark = pytest.mark.timeout(2 * LIMIT_S)
ROOT = Path(__file__).parents[2]
NAMES = [stage.name for stage in STAGES]
MakeCapture = Callable[..., Path]


def put(studio: Studio, make_capture: MakeCapture, capture_id: str) -> None:
    """Put a small capture into the store under this id."""
    folder = make_capture(capture_id)
    path = folder / "capture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"capture_id": capture_id}))
    import_capture(studio.store, folder)


def assert_published_once(studio: Studio, capture_id: str) -> None:
    """Check that the model is there, and of each stage one whole output with nothing beside it."""
    assert latest_model(studio.store, capture_id) is not None
    outputs = [f"artifacts/{capture_id}/{name}" for name in NAMES[:-1]] + [f"models/{capture_id}"]
    for output in outputs:
        (fingerprint,) = studio.store.list_folders(output)
        folder = f"{output}/{fingerprint}"
        manifest = read_manifest(studio.store, folder)
        assert manifest is not None
        parts = {stored.key[len(folder) + 1 :].split("/")[0] for stored in studio.store.list_objects(folder)}
        assert parts == {"manifest.json", manifest.attempt}


def test_a_pod_killed_in_every_stage_is_run_again_and_one_model_is_published(
    studio: Studio, make_capture: MakeCapture
) -> None:
    put(studio, make_capture, "killed")
    for name in NAMES:
        studio.break_pod(Fault.KILLED, "killed", name)
    studio.start("killed", "killed")
    assert studio.finish("killed") == "success"
    assert studio.pods_of("killed") == [name for name in NAMES for _ in range(2)]
    assert {studio.tries("killed")[name] for name in NAMES} == {2}
    assert "exit code 137: it was killed" in studio.log("killed", "mask", 1)
    assert_published_once(studio, "killed")
    assert studio.cluster.pods == {}


def test_a_run_survives_what_the_cluster_and_the_store_do_to_it(studio: Studio, make_capture: MakeCapture) -> None:
    """API errors, image pull failure, eviction, out of memory; a store that does all that a store can do wrong."""
    put(studio, make_capture, "troubled")
    studio.kubernetes.refusals += [Refusal(500, 2, "POST", "/pods$"), Refusal(429, 2, "GET", "/pods/[^/]+$")]
    studio.break_pod(Fault.IMAGE_PULL, "troubled", "condition")
    studio.break_pod(Fault.EVICTED, "troubled", "compensate_poses")
    studio.break_pod(Fault.OUT_OF_MEMORY, "troubled", "reconstruct")
    studio.proxy.methods, studio.proxy.stall_s = {"GET", "PUT", "HEAD"}, 3.0
    studio.proxy.faults.extend(list(StoreFault) * 2)
    studio.start("troubled", "troubled", allow_smaller_preset=True)
    assert studio.finish("troubled") == "success"

    assert not studio.proxy.faults
    assert not any(refusal.times for refusal in studio.kubernetes.refusals)
    assert Counter(studio.pods_of("troubled"))["compensate_poses"] >= 2
    assert "ImagePull" in studio.log("troubled", "condition", 1)
    assert "Evicted" in studio.log("troubled", "compensate_poses", 1)
    assert "the next try uses preset draft" in studio.log("troubled", "reconstruct", 1)
    model = latest_model(studio.store, "troubled")
    assert model is not None
    manifest = read_manifest(studio.store, model.manifest.rsplit("/", 1)[0])
    assert manifest is not None
    assert "made with preset draft because memory ran out with standard" in manifest.warnings[0]
    (folder,) = studio.store.list_folders("artifacts/troubled/export")
    exported = read_manifest(studio.store, f"artifacts/troubled/export/{folder}")
    assert exported is not None
    assert exported.config == resolve_config("draft", {}).export.model_dump(mode="json")


def test_two_runs_of_one_capture_survive_the_death_of_the_scheduler(studio: Studio, make_capture: MakeCapture) -> None:
    put(studio, make_capture, "shared")
    studio.start("first", "shared")
    studio.start("second", "shared")
    studio.wait_for("the second stage", lambda: "condition" in studio.pods_of("shared"))
    with studio.without_scheduler():
        there = len(studio.cluster.started)
    restarted = time.monotonic()
    studio.wait_for("a new pod", lambda: len(studio.cluster.started) > there)
    print(f"the runs went on {time.monotonic() - restarted:.1f} s after the scheduler's restart")
    assert studio.finish("first") == "success"
    assert studio.finish("second") == "success"
    assert_published_once(studio, "shared")
    assert len(studio.pods_of("shared")) <= 2 * (len(NAMES) + 1)  # each run repeats one stage at most


def test_the_role_for_airflow_allows_what_it_asks_for_and_nothing_else(
    studio: Studio, make_capture: MakeCapture
) -> None:
    if not studio.kubernetes.calls:  # no other test has run
        test_a_pod_killed_in_every_stage_is_run_again_and_one_model_is_published(studio, make_capture)
    role = next(yaml.safe_load_all((ROOT / "deploy/rbac.yaml").read_text()))
    allowed = {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    asked = studio.kubernetes.calls - {("get", "version")}  # anybody may ask for that
    assert asked <= allowed
    # What older clients and servers call `create`; and what only a trigger asks whose pod takes its time to start.
    assert allowed - asked <= {("get", "pods/exec"), ("watch", "events")}


def test_without_memory_and_without_permission_a_stage_fails_at_once(studio: Studio, make_capture: MakeCapture) -> None:
    put(studio, make_capture, "large")
    studio.break_pod(Fault.OUT_OF_MEMORY, "large", "validate")
    studio.start("large", "large")
    assert studio.finish("large") == "failed"
    assert studio.tries("large")["validate"] == 1
    assert "choose a smaller preset than standard" in studio.log("large", "validate", 1)


def test_ending_a_task_deletes_its_pod(studio: Studio, make_capture: MakeCapture) -> None:
    put(studio, make_capture, "ended")
    studio.break_pod(Fault.KILLED, "ended", "validate", at=b"never said")
    studio.start("ended", "ended")
    studio.wait_for("the pod", lambda: any(pod.containers[0].log for pod in studio.cluster.pods.values()))
    task = f"/dags/{DAG_ID}/dagRuns/ended/taskInstances/validate?update_mask=new_state"
    studio.request("PATCH", task, {"new_state": "failed"})
    studio.wait_for("the end of the pod", lambda: not studio.cluster.pods)
    assert studio.finish("ended") == "failed"


@pytest.mark.parametrize("wrong", [{"preset": "best"}, {"capture_id": "../x"}, {"allow_smaller_preset": "perhaps"}])
def test_wrong_parameters_start_no_pod(studio: Studio, wrong: dict[str, str]) -> None:
    pods = len(studio.cluster.started)
    with pytest.raises(AirflowError, match="400"):
        studio.api.trigger(DAG_ID, "wrong", {"capture_id": "killed", **wrong})
    assert len(studio.cluster.started) == pods
