"""The Kubernetes runner under a real Airflow with a real S3 server, on an API double that really runs the pods.

The tests share one Airflow; each has a capture of its own.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import urllib3
import yaml
from api_double import Refusal
from cluster import Fault
from conftest import DAG_ID, LIMIT_S, Studio
from fault_proxy import Fault as StoreFault

from scan2twin.airflow_server import AirflowError
from scan2twin.config import resolve_config
from scan2twin.runner import import_capture
from scan2twin.stages import STAGES
from scan2twin.store.artifacts import read_manifest
from scan2twin.store.manifest import Manifest
from scan2twin.store.models import latest_model

pytestmark = pytest.mark.timeout(2 * LIMIT_S)
NAMES = [stage.name for stage in STAGES]
MakeCapture = Callable[..., Path]


def put(studio: Studio, make_capture: MakeCapture, capture_id: str) -> None:
    """Put a small capture into the store under this id."""
    folder = make_capture(capture_id)
    path = folder / "capture.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"capture_id": capture_id}))
    import_capture(studio.store, folder)


def assert_published_once(studio: Studio, capture_id: str) -> dict[str, Manifest]:
    """Check that the model is there, and of each stage one whole output and nothing else; return their manifests."""
    assert latest_model(studio.store, capture_id) is not None
    manifests = {}
    for name, area in [
        *((name, f"artifacts/{capture_id}/{name}") for name in NAMES[:-1]),
        ("publish", f"models/{capture_id}"),
    ]:
        objects = [
            stored.key for stored in studio.store.list_objects(area) if stored.key.count("/") > area.count("/") + 1
        ]
        (committed,) = [key.removesuffix("/manifest.json") for key in objects if key.endswith("/manifest.json")]
        manifest = read_manifest(studio.store, committed)
        assert manifest is not None
        attempts = {key.split("/")[-2] for key in objects if key.endswith("/read.json")}
        assert attempts == {manifest.attempt}
        manifests[name] = manifest
    return manifests


def test_a_pod_killed_in_every_stage_is_run_again_and_one_model_is_published(
    studio: Studio, make_capture: MakeCapture
) -> None:
    """Each pod is killed once, that of reconstruct for its memory; and a person looks at the masks."""
    put(studio, make_capture, "killed")
    for name in NAMES:
        studio.break_pod(Fault.OUT_OF_MEMORY if name == "reconstruct" else Fault.KILLED, "killed", name)
    studio.start("killed", "killed", allow_smaller_preset=True, review=True)
    review = f"/dags/{DAG_ID}/dagRuns/killed/taskInstances/review_masks"
    studio.wait_for("the review", lambda: studio.api.request("GET", review)["state"] == "awaiting_input")
    body = studio.api.request("GET", f"{review}/-1/hitlDetails")["body"]
    link = re.search(r"\[Contact sheet\]\((.+)\)", body)
    assert link is not None
    assert urllib3.request("GET", link[1]).data == b"a picture"
    assert studio.pods_of("killed") == [name for name in NAMES[: NAMES.index("reconstruct")] for _ in range(2)]
    studio.api.request("PATCH", f"{review}/-1/hitlDetails", {"chosen_options": ["Approve"]})

    assert studio.finish("killed") == "success"
    assert studio.pods_of("killed") == [name for name in NAMES for _ in range(2)]
    tries = studio.tries("killed")
    assert {name: tries[name] for name in NAMES} == dict.fromkeys(NAMES, 2)
    assert "exit code 137: it was killed" in studio.log("killed", "mask", 1)
    assert "the next try uses preset draft" in studio.log("killed", "reconstruct", 1)
    manifests = assert_published_once(studio, "killed")
    assert "made with preset draft because memory ran out with standard" in manifests["publish"].warnings[0]
    assert manifests["export"].config == resolve_config("draft", {}).export.model_dump(mode="json")
    assert studio.cluster.pods == {}


def test_two_runs_at_once_survive_what_cluster_store_and_scheduler_do_to_them(
    studio: Studio, make_capture: MakeCapture
) -> None:
    """API errors, image pull failure, eviction; a store that refuses, drops, cuts and flips bits; no scheduler."""
    put(studio, make_capture, "troubled")
    studio.kubernetes.refusals += [Refusal(500, 2, "POST", "/pods$"), Refusal(429, 2, "GET", "/pods/[^/]+$")]
    studio.break_pod(Fault.IMAGE_PULL, "troubled", "condition")
    studio.break_pod(Fault.EVICTED, "troubled", "compensate_poses")
    studio.proxy.methods = {"GET", "PUT", "HEAD"}
    studio.proxy.faults.extend([fault for fault in StoreFault if fault is not StoreFault.STALL] * 2)
    for run_id in ("one", "other"):
        studio.start(run_id, "troubled")
    studio.wait_for("the third stage", lambda: "compensate_poses" in studio.pods_of("troubled"))
    with studio.without_scheduler():
        pass
    assert [studio.finish(run_id) for run_id in ("one", "other")] == ["success", "success"]

    assert not studio.proxy.faults
    assert not any(refusal.times for refusal in studio.kubernetes.refusals)
    assert "ImagePull" in studio.log("one", "condition", 1) + studio.log("other", "condition", 1)
    assert "Evicted" in "".join(
        studio.log(run_id, "compensate_poses", attempt) for run_id in ("one", "other") for attempt in (1, 2, 3)
    )
    manifests = assert_published_once(studio, "troubled")
    assert manifests["publish"].warnings == []


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
    studio.api.request("PATCH", task, {"new_state": "failed"})
    studio.wait_for("the end of the pod", lambda: not studio.cluster.pods)
    assert studio.finish("ended") == "failed"


@pytest.mark.parametrize("wrong", [{"preset": "best"}, {"capture_id": "../x"}, {"allow_smaller_preset": "perhaps"}])
def test_wrong_parameters_start_no_pod(studio: Studio, wrong: dict[str, str]) -> None:
    pods = len(studio.cluster.started)
    with pytest.raises(AirflowError, match="400"):
        studio.api.trigger(DAG_ID, "wrong", {"capture_id": "killed", **wrong})
    assert len(studio.cluster.started) == pods


def test_the_role_grants_exactly_the_calls_that_were_made(studio: Studio) -> None:
    """Last: all of Airflow's calls of the tests above count."""
    role, _ = yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "rbac.yaml").read_text())
    granted = {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
    made = {call for call in studio.kubernetes.calls if call[1] != "version"}  # which everybody may ask for
    # Until Kubernetes 1.35 a websocket's exec counts as `get`, from then on as `create`.
    assert granted - {("get", "pods/exec")} == made
