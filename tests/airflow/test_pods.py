"""The pods of the Kubernetes runner, as the operator would send them, against the schema of the Kubernetes API."""

import json
from types import SimpleNamespace
from typing import Any

import kubernetes_validate
import pytest

from operators.pods import CONTAINER_SECURITY, STORE_KEYS, keys_secret, pod_template
from operators.settings import RunnerSettings
from scan2twin.stages import STAGES, Stage, stage_named

SETTINGS = RunnerSettings.from_environment(
    {
        "SCAN2TWIN_RUNNER": "kubernetes",
        "SCAN2TWIN_STORE": "s3+https://minio.store:9000",
        "SCAN2TWIN_IMAGE": "registry.example/scan2twin/{package}@sha256:" + 64 * "0",
        "SCAN2TWIN_GPU_RUNTIME_CLASS": "nvidia",
        "SCAN2TWIN_GPU_POOL": "gpu",
    }
)
LONG_ID = "-" + 62 * "a" + "-"  # a capture id that is no label value
GPU_STAGES = {"reconstruct"}


def operator_of(stage: Stage, settings: RunnerSettings = SETTINGS) -> Any:
    from operators.kubernetes import KubernetesStageOperator

    return KubernetesStageOperator(task_id=stage.name, stage=stage, settings=settings)


def pod_of(
    stage: Stage,
    monkeypatch: pytest.MonkeyPatch,
    capture_id: str = "skull",
    *,
    preset: str = "draft",
    settings: RunnerSettings = SETTINGS,
) -> dict[str, Any]:
    """Return the pod that the operator asks the API for, as JSON."""
    from kubernetes.client import ApiClient

    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", "kubernetes://")
    operator = operator_of(stage, settings)
    task = SimpleNamespace(dag_id="reconstruct_capture", task_id=stage.name, map_index=-1, try_number=1)
    context: Any = {
        "ti": task,
        "run_id": "run",
        "dag": SimpleNamespace(parent_dag=None),
        "params": {
            "capture_id": capture_id,
            "preset": preset,
            "overrides": {"reconstruct": {"iterations": 5}},
            "allow_smaller_preset": False,
        },
    }
    operator.render_template_fields(context)
    pod: dict[str, Any] = ApiClient().sanitize_for_serialization(operator.build_pod_request_obj(context, dry_run=True))
    return pod


@pytest.fixture(params=STAGES, ids=lambda stage: stage.name)
def stage(request: pytest.FixtureRequest) -> Stage:
    chosen: Stage = request.param
    return chosen


@pytest.mark.parametrize("capture_id", ["skull", LONG_ID])
def test_pods_pass_the_strict_schema(stage: Stage, monkeypatch: pytest.MonkeyPatch, capture_id: str) -> None:
    pod = pod_of(stage, monkeypatch, capture_id)
    kubernetes_validate.validate(pod, "1.31", strict=True)
    assert pod["metadata"]["labels"]["scan2twin/stage"] == stage.name
    assert pod["metadata"]["annotations"]["scan2twin/capture"] == capture_id


def test_the_capture_is_a_label_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pod_of(STAGES[0], monkeypatch)["metadata"]["labels"]["scan2twin/capture"] == "skull"
    shortened = pod_of(STAGES[0], monkeypatch, LONG_ID)["metadata"]["labels"]["scan2twin/capture"]
    assert len(shortened) <= 63
    assert shortened[0].isalnum()
    assert shortened[-1].isalnum()


def test_pods_run_the_stage_of_this_capture(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    base = pod_of(stage, monkeypatch)["spec"]["containers"][0]
    package = stage.module.split(".")[0]
    assert base["image"].startswith(f"registry.example/scan2twin/{package}@sha256:")
    assert base["command"] == ["scan2twin"]
    assert base["args"][:3] == ["stage", stage.name, "--capture=skull"]
    config = next(argument for argument in base["args"] if argument.startswith("--config="))
    assert json.loads(config.removeprefix("--config=")) == {"reconstruct": {"iterations": 5}}


def test_pods_keep_to_the_restricted_security_standard(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pod_of(stage, monkeypatch)["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] != 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not spec.get("hostNetwork")
    assert len(spec["containers"]) == 2  # the stage and Airflow's sidecar
    for container in spec["containers"]:
        assert container["securityContext"] == CONTAINER_SECURITY
        assert container["image"] == spec["containers"][0]["image"]
    assert spec["restartPolicy"] == "Never"
    assert spec["activeDeadlineSeconds"] == stage.resources.timeout_s


def test_pods_hold_no_secret_but_name_where_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    pod = pod_of(stage, monkeypatch)
    assert "very-secret" not in json.dumps(pod)
    variables = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
    assert variables["SCAN2TWIN_STORE"]["value"] == "s3+https://minio.store:9000"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert variables[name]["valueFrom"]["secretKeyRef"] == {"name": "scan2twin-store", "key": name}
        assert "value" not in variables[name]


def test_pods_with_keys_of_their_own_name_the_secret_that_belongs_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = pod_of(STAGES[0], monkeypatch, settings=SETTINGS.model_copy(update={"capture_keys": True}))
    variables = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
    for name in STORE_KEYS:
        assert variables[name]["valueFrom"]["secretKeyRef"] == {"name": pod["metadata"]["name"], "key": name}
    secret = keys_secret(dict.fromkeys(STORE_KEYS, "x"), pod["metadata"]["name"], "a-uid", "scan2twin")
    kubernetes_validate.validate(secret, "1.31", strict=True)
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "a-uid"


@pytest.mark.parametrize(("preset", "memory"), [("draft", "6Gi"), ("standard", "6Gi"), ("high", "12Gi")])
def test_the_highest_preset_asks_for_more_memory(monkeypatch: pytest.MonkeyPatch, preset: str, memory: str) -> None:
    resources = pod_of(stage_named("reconstruct"), monkeypatch, preset=preset)["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == memory
    assert resources["limits"]["nvidia.com/gpu"] == "1"


def test_only_gpu_stages_ask_for_a_gpu(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = pod_of(stage, monkeypatch)["spec"]
    limits = spec["containers"][0]["resources"]["limits"]
    wants = stage.name in GPU_STAGES
    assert limits.get("nvidia.com/gpu") == ("1" if wants else None)
    assert spec.get("runtimeClassName") == ("nvidia" if wants else None)
    assert bool(spec.get("tolerations")) == wants
    assert {"cpu", "memory", "ephemeral-storage"} <= limits.keys()
    assert operator_of(stage).deferrable == wants
    assert operator_of(stage).pool == ("gpu" if wants else "default_pool")


def test_without_gpus_every_stage_runs_on_the_processor(stage: Stage) -> None:
    template = pod_template(stage, SETTINGS.model_copy(update={"gpu": False}))
    assert "nvidia" not in json.dumps(template)
    assert not operator_of(stage, SETTINGS.model_copy(update={"gpu": False})).deferrable


@pytest.mark.parametrize("exit_code", [0, 2, 137])
def test_the_stages_exit_code_is_read_from_its_own_container(exit_code: int) -> None:
    from kubernetes.client import models as k8s

    from operators.kubernetes import stage_end

    def ended(name: str, code: int) -> Any:
        state = k8s.V1ContainerState(terminated=k8s.V1ContainerStateTerminated(exit_code=code))
        return k8s.V1ContainerStatus(name=name, state=state, image="i", image_id="i", ready=False, restart_count=0)

    sidecar = ended("airflow-xcom-sidecar", 5)
    pod = k8s.V1Pod(status=k8s.V1PodStatus(container_statuses=[sidecar, ended("base", exit_code)]))
    assert stage_end(pod).exit_code == exit_code
    assert stage_end(k8s.V1Pod(status=k8s.V1PodStatus(container_statuses=[sidecar]))) is None
    assert stage_end(None) is None
