"""The API double itself, through the official client: a double that is too kind proves nothing."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from api_double import ApiDouble, Refusal
from cluster import Cluster, Fault, PodFault
from kubernetes import client, config, watch
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

NAMESPACE = "scan2twin"
LIMIT_S = 30.0


@pytest.fixture
def pods(api: ApiDouble, tmp_path: Path) -> Iterator[Any]:
    kubeconfig = str(api.kubeconfig(tmp_path / "kubeconfig"))
    yield client.CoreV1Api(config.new_client_from_config(kubeconfig))
    api.delete_all_pods()


def a_pod(name: str, script: str, **spec: Any) -> dict[str, Any]:
    base = {"name": "base", "image": "any", "command": ["sh", "-c", script], "env": spec.pop("env", [])}
    base["volumeMounts"] = [{"name": "scratch", "mountPath": "/tmp"}]
    volumes = [{"name": "scratch", "emptyDir": {}}]
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"test": name}},
        "spec": {"containers": [base], "volumes": volumes, "restartPolicy": "Never", **spec},
    }  # fmt: skip


def wait_for(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + LIMIT_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def ended(pods: Any, name: str) -> Any:
    """Wait until a pod has ended and return its status."""

    def look() -> Any:
        status = pods.read_namespaced_pod(name, NAMESPACE).status
        return status if status.phase in ("Succeeded", "Failed") else None

    return wait_for(look)


def terminated(status: Any) -> Any:
    return status.container_statuses[0].state.terminated


def test_a_pod_runs_its_command_with_its_volumes_and_secrets(pods: Any) -> None:
    secret = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "scan2twin-store", "key": "AWS_ACCESS_KEY_ID"}}}
    script = 'echo "$KEY" > /tmp/key && wc -c < /tmp/key && echo "$PWD" && exit 3'
    pods.create_namespaced_pod(NAMESPACE, a_pod("runs", script, env=[secret]))
    status = ended(pods, "runs")
    assert (status.phase, terminated(status).exit_code, terminated(status).reason) == ("Failed", 3, "Error")
    assert "21" in pods.read_namespaced_pod_log("runs", NAMESPACE, container="base")
    listed = pods.list_namespaced_pod(NAMESPACE, label_selector="test=runs,!other,test!=x").items
    assert [pod.metadata.name for pod in listed] == ["runs"]
    assert pods.list_namespaced_pod(NAMESPACE, label_selector="test=other").items == []
    seen = [
        event["object"].reason
        for event in watch.Watch().stream(
            pods.list_namespaced_event, NAMESPACE, field_selector="involvedObject.name=runs", timeout_seconds=1
        )
    ]
    assert seen == ["Scheduled", "Started"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda pod: pod["metadata"].update(name="Not_A_Name"), 422),
        (lambda pod: pod["metadata"]["labels"].update(test="-"), 422),
        (lambda pod: pod["spec"].update(restartPolicies="Never"), 422),
        (lambda pod: pod["spec"]["containers"][0].update(volumeMounts=[{"name": "no", "mountPath": "/x"}]), 422),
        (lambda pod: pod["spec"]["containers"][0].pop("name"), 422),
    ],
)
def test_what_a_real_server_refuses_is_refused(pods: Any, change: Callable[[Any], Any], code: int) -> None:
    pod = a_pod("wrong", "true")
    change(pod)
    with pytest.raises(ApiException) as refusal:
        pods.create_namespaced_pod(NAMESPACE, pod)
    assert refusal.value.status == code


def test_unknown_names_and_wrong_credentials_are_refused(pods: Any) -> None:
    for call, code in (
        (lambda: pods.read_namespaced_pod("nobody", NAMESPACE), 404),
        (lambda: pods.create_namespaced_pod("elsewhere", a_pod("x", "true")), 404),
    ):
        with pytest.raises(ApiException) as refusal:
            call()
        assert refusal.value.status == code
    url = f"{pods.api_client.configuration.host}/api/v1/namespaces/{NAMESPACE}/pods"
    assert urllib3.request("GET", url, headers={"Authorization": "Bearer guess"}).status == 401


def test_a_deleted_pod_is_told_first_and_then_killed(pods: Any) -> None:
    stubborn = "trap 'echo asked' TERM; echo up; while true; do sleep 0.1; done"
    pods.create_namespaced_pod(NAMESPACE, a_pod("stubborn", stubborn))
    wait_for(lambda: pods.read_namespaced_pod("stubborn", NAMESPACE).status.phase == "Running")
    wait_for(lambda: "up" in pods.read_namespaced_pod_log("stubborn", NAMESPACE))
    pods.delete_namespaced_pod("stubborn", NAMESPACE, grace_period_seconds=1)
    wait_for(lambda: "asked" in pods.read_namespaced_pod_log("stubborn", NAMESPACE))
    wait_for(lambda: not pods.list_namespaced_pod(NAMESPACE, label_selector="test=stubborn").items)


@pytest.mark.parametrize(
    ("kind", "reason", "pod_reason"),
    [(Fault.KILLED, "Error", None), (Fault.OUT_OF_MEMORY, "OOMKilled", None), (Fault.EVICTED, "Error", "Evicted")],
)
def test_pods_can_be_struck(pods: Any, cluster: Cluster, kind: Fault, reason: str, pod_reason: str | None) -> None:
    name = f"struck-{kind.name.lower().replace('_', '-')}"
    cluster.faults.append(PodFault(kind, {"test": name}))
    pods.create_namespaced_pod(NAMESPACE, a_pod(name, "echo working; sleep 60"))
    status = ended(pods, name)
    assert (terminated(status).exit_code, terminated(status).reason) == (128 + signal.SIGKILL, reason)
    assert status.reason == pod_reason


def test_an_image_that_cannot_be_pulled_keeps_the_pod_waiting(pods: Any, cluster: Cluster) -> None:
    cluster.faults.append(PodFault(Fault.IMAGE_PULL, {"test": "no-image"}))
    pods.create_namespaced_pod(NAMESPACE, a_pod("no-image", "true"))

    def backing_off() -> bool:
        statuses = pods.read_namespaced_pod("no-image", NAMESPACE).status.container_statuses
        return bool(statuses) and statuses[0].state.waiting.reason == "ImagePullBackOff"

    wait_for(backing_off)


def test_a_pod_ends_at_its_deadline(pods: Any) -> None:
    pods.create_namespaced_pod(NAMESPACE, a_pod("late", "sleep 60", activeDeadlineSeconds=1))
    assert ended(pods, "late").reason == "DeadlineExceeded"


def test_requests_are_refused_as_often_as_asked(pods: Any, api: ApiDouble) -> None:
    api.refusals.append(Refusal(500, 1, "GET", "/pods$"))
    with pytest.raises(ApiException, match="refused for a test"):
        pods.list_namespaced_pod(NAMESPACE)
    pods.list_namespaced_pod(NAMESPACE)


def test_a_command_is_executed_in_a_container(pods: Any) -> None:
    pods.create_namespaced_pod(NAMESPACE, a_pod("asked", "echo 42 > /tmp/answer; sleep 60"))
    wait_for(lambda: pods.read_namespaced_pod("asked", NAMESPACE).status.phase == "Running")
    answer = stream(
        pods.connect_get_namespaced_pod_exec, "asked", NAMESPACE, container="base",
        command=["sh", "-c", "while [ ! -s /tmp/answer ]; do sleep 0.1; done; cat /tmp/answer"],
        stdin=False, stdout=True, stderr=True, tty=False,
    )  # fmt: skip
    assert answer.strip() == "42"


def test_a_kill_inside_a_container_reaches_nothing_else(pods: Any) -> None:
    for name in ("killed", "spared"):
        pods.create_namespaced_pod(NAMESPACE, a_pod(name, "trap 'exit 0' INT; while true; do sleep 0.1; done"))
        wait_for(lambda name=name: pods.read_namespaced_pod(name, NAMESPACE).status.phase == "Running")
    shell = stream(
        pods.connect_get_namespaced_pod_exec, "killed", NAMESPACE, container="base", command=["/bin/sh"],
        stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False,
    )  # fmt: skip
    shell.write_stdin("echo hello from $((40 + 2))\n")
    assert shell.readline_stdout(timeout=10) == "hello from 42"
    shell.write_stdin("kill -2 $(pgrep -u $(id -u) -f 'sh')\n")
    assert ended(pods, "killed").phase == "Succeeded"
    assert pods.read_namespaced_pod("spared", NAMESPACE).status.phase == "Running"
