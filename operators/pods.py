"""Pod specs of the stages, as plain data: no Kubernetes client is needed to build or to check them."""

from collections.abc import Mapping
from typing import Any

from operators.settings import RunnerSettings
from scan2twin.stages import Stage

BASE_CONTAINER = "base"  # the container whose log and exit code are the stage's
RESULT_FILE = "/airflow/xcom/return.json"  # where Airflow's sidecar container looks for the result
GPU_RESOURCE = "nvidia.com/gpu"
USER_ID = 10001  # the images' user; any number but 0 works
STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")  # the last of temporary ones only
SCRATCH = "/tmp"  # the only writable folder, an emptyDir

# The *restricted* level of the Kubernetes pod security standards.
CONTAINER_SECURITY: dict[str, Any] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def gpus_of(stage: Stage, settings: RunnerSettings) -> int:
    """Return how many GPUs the stage's pod asks for."""
    return stage.resources.gpu if settings.gpu else 0


def pod_template(stage: Stage, settings: RunnerSettings) -> dict[str, Any]:
    """Return the stage's pod without its arguments: what is the same for every capture."""
    resources = stage.resources
    gpus = gpus_of(stage, settings)
    amounts = {
        "cpu": resources.cpu,
        "memory": resources.memory,
        "ephemeral-storage": resources.ephemeral_storage,
        **({GPU_RESOURCE: str(gpus)} if gpus else {}),
    }
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": BASE_CONTAINER,
                "image": settings.image_of(stage),
                "command": ["scan2twin"],
                "env": _environment(stage, settings),
                # Limits equal requests: a stage is never evicted for what another pod uses.
                "resources": {"requests": amounts, "limits": amounts},
                "securityContext": CONTAINER_SECURITY,
                "volumeMounts": [{"name": "scratch", "mountPath": SCRATCH}],
            }
        ],
        "restartPolicy": "Never",
        "activeDeadlineSeconds": resources.timeout_s,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": resources.ephemeral_storage}}],
    }
    if gpus:
        spec["tolerations"] = [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}]
        if settings.gpu_runtime_class:
            spec["runtimeClassName"] = settings.gpu_runtime_class
    labels = {
        "app.kubernetes.io/name": "scan2twin",
        "app.kubernetes.io/component": stage.name,
        "app.kubernetes.io/managed-by": "airflow",
        "scan2twin/stage": stage.name,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": settings.namespace, "labels": labels},
        "spec": spec,
    }


def _environment(stage: Stage, settings: RunnerSettings) -> list[dict[str, Any]]:
    plain = {
        "SCAN2TWIN_STORE": settings.store,
        "HOME": SCRATCH,
        "TMPDIR": SCRATCH,
        # Without these, thread pools are sized for the whole node and then throttled.
        "OMP_NUM_THREADS": stage.resources.cpu,
        "NUMBA_NUM_THREADS": stage.resources.cpu,
    }
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": settings.store_secret, "key": name}}}
            for name in (STORE_KEYS if settings.capture_keys else STORE_KEYS[:2])
        ),
    ]


def keys_secret(keys: Mapping[str, str], pod_name: str, pod_uid: str, namespace: str) -> dict[str, Any]:
    """Return the Secret with a pod's own keys. It bears the pod's name, belongs to it and is deleted with it."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod_name, "uid": pod_uid}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": pod_name, "namespace": namespace, "ownerReferences": [owner]},
        "immutable": True,
        "type": "Opaque",
        "stringData": dict(keys),
    }
