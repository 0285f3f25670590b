"""The Kubernetes runner: a stage as a pod. Imported only when it is chosen, because it imports slowly."""

from datetime import timedelta
from http import HTTPStatus
from typing import Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.pod_generator import make_safe_label_value
from airflow.sdk.exceptions import AirflowException
from kubernetes.client.exceptions import ApiException

from operators.contract import manifest_reference, refuse_unknown_conf, stage_arguments, stage_failure
from operators.out_of_memory import out_of_memory_failure
from operators.pods import (
    BASE_CONTAINER,
    CONTAINER_SECURITY,
    RESULT_FILE,
    STORE_KEYS,
    gpus_of,
    keys_secret,
    pod_template,
)
from operators.settings import RunnerSettings
from scan2twin.stages import Stage

STARTUP_TIMEOUT_S = 900  # a CUDA image of several GB on a node that has never seen it
OUT_OF_MEMORY = "OOMKilled"  # the reason that Kubernetes gives for a container over its memory limit
LOG_INTERVAL_S = 60  # how often a deferred task comes back to copy the pod's log


class KubernetesStageOperator(KubernetesPodOperator):  # type: ignore[misc]  # airflow is untyped here
    """Run a stage as a pod, which is deleted with its task; GPU stages wait without occupying a worker."""

    def __init__(self, *, stage: Stage, settings: RunnerSettings, **options: Any) -> None:
        gpu = gpus_of(stage, settings) > 0
        super().__init__(
            name=f"scan2twin-{stage.name.replace('_', '-')}",
            arguments=stage_arguments(stage, RESULT_FILE),
            pod_template_dict=pod_template(stage, settings),
            base_container_name=BASE_CONTAINER,
            annotations={"scan2twin/capture": "{{ params.capture_id }}"},
            do_xcom_push=True,
            deferrable=gpu,
            logging_interval=LOG_INTERVAL_S,
            pool=settings.gpu_pool if gpu else "default_pool",
            startup_timeout_seconds=STARTUP_TIMEOUT_S,
            startup_check_interval_seconds=1,
            on_finish_action="delete_pod",
            container_name_log_prefix_enabled=False,
            log_events_on_failure=True,
            log_pod_spec_on_failure=False,  # it would print the environment
            xcom_sidecar_container_security_context=CONTAINER_SECURITY,
            **options,
        )
        self.stage = stage
        self.capture_keys = settings.capture_keys

    def execute(self, context: Any) -> dict[str, str] | None:
        """Start the pod and wait for it, or hand the waiting over to the triggerer."""
        refuse_unknown_conf(context["dag_run"].conf, context["dag"].params)
        result = super().execute(context)
        return manifest_reference(result) if result else None

    def trigger_reentry(self, context: Any, event: dict[str, Any]) -> dict[str, str] | None:
        """Take over again from the triggerer."""
        result = super().trigger_reentry(context, event)
        return manifest_reference(result) if result else None

    def build_pod_request_obj(self, context: Any = None, **options: Any) -> Any:
        """Return the pod; the sidecar uses the stage's own image, so that no second image is pulled."""
        pod = super().build_pod_request_obj(context, **options)
        stage, *sidecars = pod.spec.containers
        if context:
            pod.metadata.labels["scan2twin/capture"] = make_safe_label_value(context["params"]["capture_id"])
            # The template is of all presets, what the run asks for is known only now.
            for amounts in (stage.resources.requests, stage.resources.limits):
                amounts["memory"] = self.stage.resources.memory_with(context["params"]["preset"])
        for sidecar in sidecars:
            sidecar.image = stage.image
        if self.capture_keys:
            for variable in stage.env:
                if variable.name in STORE_KEYS:
                    variable.value_from.secret_key_ref.name = pod.metadata.name
        return pod

    def get_or_create_pod(self, pod_request_obj: Any, context: Any) -> Any:
        """Create the pod, or find the one that an earlier life of this task created; see that it has its keys.

        The pod comes first, so that its Secret can belong to it: it waits for the Secret, and takes it along.
        """
        pod = super().get_or_create_pod(pod_request_obj, context)
        if self.capture_keys:
            self._hand_over_keys(pod.metadata.name, pod.metadata.namespace, context["params"]["capture_id"])
        return pod

    def _hand_over_keys(self, pod_name: str, namespace: str, capture_id: str) -> None:
        """Make the Secret with the pod's keys unless it exists."""
        # Imported where they are needed: they bring the store's client along.
        from scan2twin.store import open_store
        from scan2twin.store.session_keys import stage_keys

        lifetime = timedelta(seconds=STARTUP_TIMEOUT_S + self.stage.resources.timeout_s)
        keys = stage_keys(open_store(), capture_id, self.stage, lifetime)
        uid = self.client.read_namespaced_pod(pod_name, namespace).metadata.uid
        try:
            self.client.create_namespaced_secret(namespace, keys_secret(keys, pod_name, uid, namespace))
        except ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise

    def cleanup(self, pod: Any, remote_pod: Any, xcom_result: Any = None, context: Any = None) -> None:
        """Delete the pod; raise what the end of its stage means if it failed."""
        try:
            super().cleanup(pod, remote_pod, xcom_result, context)
        except AirflowException:
            ended = stage_end(remote_pod)
            if ended is None or not ended.exit_code:  # the pod failed, not the stage: evicted, image not found
                raise
            if ended.reason == OUT_OF_MEMORY and context:
                raise out_of_memory_failure(self.stage, context["params"]) from None
            raise stage_failure(self.stage.name, ended.exit_code) from None


def stage_end(pod: Any) -> Any:
    """Return how the stage in a pod ended, a V1ContainerStateTerminated; None if it did not come to an end."""
    for status in (pod.status.container_statuses or []) if pod and pod.status else []:
        if status.name == BASE_CONTAINER and status.state and status.state.terminated:
            return status.state.terminated
    return None
