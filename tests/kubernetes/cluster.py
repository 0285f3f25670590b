"""The cluster behind the Kubernetes API double: pods that really run, and what can go wrong with them."""

import asyncio
import copy
import shutil
import signal
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

from pod_processes import Container, Json, timestamp

NODE = "node-1"
START_DELAY_S = 0.05  # between a pod's creation and its containers
DEFAULT_GRACE_S = 30
BASE = "base"  # the container that faults are for
HOLD_VARIABLE = "TEST_HOLD"  # set in a pod that waits for its fault


class Fault(Enum):
    """What can happen to a pod."""

    IMAGE_PULL = auto()  # its image cannot be pulled
    EVICTED = auto()  # the node is short of something
    OUT_OF_MEMORY = auto()  # the container is over its limit
    KILLED = auto()  # SIGKILL, for whatever reason


@dataclass
class PodFault:
    """A fault for the next pod that has these labels, when its log shows `at`."""

    kind: Fault
    labels: Mapping[str, str]
    at: bytes = b"working"


@dataclass
class Pod:
    """A pod as the API shows it, and its containers."""

    document: Json
    folder: Path
    containers: list[Container]
    fault: PodFault | None = None
    task: "asyncio.Task[None] | None" = None
    deleted: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.document["metadata"]["namespace"], self.document["metadata"]["name"]


@dataclass
class Cluster:
    """Pods, events and everything that changed, in order."""

    folder: Path
    path: str  # PATH in every container: the programs of every image
    namespaces: set[str]
    secrets: dict[str, dict[str, str]]
    pods: dict[tuple[str, str], Pod] = field(default_factory=dict)
    events: list[Json] = field(default_factory=list)
    changes: list[tuple[str, str, Json]] = field(default_factory=list)  # kind, ADDED | MODIFIED | DELETED, object
    faults: list[PodFault] = field(default_factory=list)
    started: list[Json] = field(default_factory=list)  # metadata of every pod that was ever created
    owned: dict[str, list[str]] = field(default_factory=dict)  # names of secrets by the uid of their pod
    version: int = 1

    def create(self, document: Json) -> Pod:
        """Take in a pod that was checked; it starts by itself."""
        metadata = document["metadata"]
        uid = str(uuid.uuid4())
        metadata.update(uid=uid, creationTimestamp=timestamp())
        document["status"] = {"phase": "Pending", "conditions": []}
        folder = self.folder / uid
        volumes = {
            volume["name"]: folder / "volumes" / volume["name"] for volume in document["spec"].get("volumes", [])
        }
        for volume in volumes.values():
            volume.mkdir(parents=True)
        fault = self._next_fault(metadata.get("labels", {}))
        pod = Pod(document, folder, [Container(spec, volumes) for spec in document["spec"]["containers"]], fault)
        self.pods[pod.key] = pod
        self.started.append(copy.deepcopy(metadata))
        self._changed("Pod", "ADDED", document)
        pod.task = asyncio.create_task(self._run_or_fail(pod))
        return pod

    def changed(self, pod: Pod) -> None:
        """Bring the pod's status up to date and tell watchers."""
        pod.document["status"]["containerStatuses"] = [container.status() for container in pod.containers]
        self._changed("Pod", "MODIFIED", pod.document)

    async def delete(self, pod: Pod, grace_s: float) -> None:
        """End the pod's containers, after `grace_s` by force, and forget the pod."""
        if pod.deleted:
            return
        pod.deleted = True
        pod.document["metadata"]["deletionTimestamp"] = timestamp()
        self.changed(pod)
        for container in pod.containers:
            container.signal(signal.SIGTERM)
        assert pod.task is not None
        await asyncio.wait([pod.task], timeout=grace_s if any(c.running for c in pod.containers) else 0)
        for container in pod.containers:
            container.signal(signal.SIGKILL)
        if any(container.running for container in pod.containers):
            await asyncio.wait([pod.task])
        pod.task.cancel()
        for container in pod.containers:  # one that was only just started
            container.signal(signal.SIGKILL)
        self.pods.pop(pod.key, None)
        for secret in self.owned.pop(pod.document["metadata"]["uid"], []):
            self.secrets.pop(secret, None)
        self._changed("Pod", "DELETED", pod.document)
        shutil.rmtree(pod.folder, ignore_errors=True)

    async def delete_all(self) -> None:
        """End every pod."""
        await asyncio.gather(*(self.delete(pod, 0) for pod in list(self.pods.values())))

    def create_secret(self, document: Json) -> None:
        """Take in a Secret, which goes with the pod that owns it."""
        metadata = document["metadata"]
        self.secrets[metadata["name"]] = dict(document["stringData"])
        for owner in metadata.get("ownerReferences", []):
            self.owned.setdefault(owner["uid"], []).append(metadata["name"])

    async def _environment(self, pod: Pod, container: Container) -> dict[str, str]:
        """Return a container's environment; wait for Secrets that are not there yet."""
        environment = {"PATH": self.path, "LANG": "C.UTF-8"} | ({HOLD_VARIABLE: "1"} if pod.fault else {})
        for entry in container.spec.get("env") or []:
            source = entry.get("valueFrom", {}).get("secretKeyRef")
            while source and source["name"] not in self.secrets:
                reason = {"reason": "CreateContainerConfigError", "message": f'secret "{source["name"]}" not found'}
                container.state = {"waiting": reason}
                self.changed(pod)
                await asyncio.sleep(START_DELAY_S)
            environment[entry["name"]] = (
                self.secrets[source["name"]][source["key"]] if source else entry.get("value", "")
            )  # fmt: skip
        return environment

    def _next_fault(self, labels: Mapping[str, str]) -> PodFault | None:
        for fault in self.faults:
            if fault.labels.items() <= labels.items():
                self.faults.remove(fault)
                return fault
        return None

    def _changed(self, kind: str, what: str, document: Json) -> None:
        self.version += 1
        document["metadata"]["resourceVersion"] = str(self.version)
        self.changes.append((kind, what, copy.deepcopy(document)))

    def _event(self, pod: Pod, kind: str, reason: str, message: str) -> None:
        metadata = pod.document["metadata"]
        event = {
            "apiVersion": "v1", "kind": "Event", "type": kind, "reason": reason, "message": message, "count": 1,
            "metadata": {"name": f"{metadata['name']}.{self.version}", "namespace": metadata["namespace"],
                         "uid": str(uuid.uuid4()), "creationTimestamp": timestamp()},
            "involvedObject": {"kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"],
                               "uid": metadata["uid"]},
            "firstTimestamp": timestamp(), "lastTimestamp": timestamp(), "source": {"component": "kubelet"},
        }  # fmt: skip
        self.events.append(event)
        self._changed("Event", "ADDED", event)

    async def _run_or_fail(self, pod: Pod) -> None:
        try:
            await self._run(pod)
        except OSError as error:  # the program of a container does not exist
            pod.document["status"].update(phase="Failed", reason="StartError", message=str(error))
            self.changed(pod)

    async def _run(self, pod: Pod) -> None:
        status = pod.document["status"]
        await asyncio.sleep(START_DELAY_S)
        pod.document["spec"]["nodeName"] = NODE
        status["conditions"].append({"type": "PodScheduled", "status": "True"})
        self._event(pod, "Normal", "Scheduled", f"Successfully assigned {'/'.join(pod.key)} to {NODE}")
        if pod.fault and pod.fault.kind is Fault.IMAGE_PULL:
            await self._fail_to_pull(pod)
            return
        for container in pod.containers:
            await container.start(pod.folder, await self._environment(pod, container))
        status.update(phase="Running", startTime=timestamp())
        self.changed(pod)
        self._event(pod, "Normal", "Started", "Started containers")
        watchers = [asyncio.create_task(self._deadline(pod))]
        if pod.fault:
            watchers.append(asyncio.create_task(self._strike(pod, pod.fault)))
        codes = await asyncio.gather(*(self._ended(pod, container) for container in pod.containers))
        for watcher in watchers:
            watcher.cancel()
        status["phase"] = "Failed" if any(codes) or "reason" in status else "Succeeded"
        self.changed(pod)

    async def _ended(self, pod: Pod, container: Container) -> int:
        exit_code = await container.wait()
        self.changed(pod)
        return exit_code

    async def _fail_to_pull(self, pod: Pod) -> None:
        image = pod.containers[0].spec["image"]
        for reason in ("ErrImagePull", "ImagePullBackOff"):
            for container in pod.containers:
                container.state = {"waiting": {"reason": reason, "message": f'Back-off pulling image "{image}"'}}
            self.changed(pod)
            self._event(pod, "Warning", "Failed", f'Failed to pull image "{image}": not found')
            await asyncio.sleep(0.5)

    async def _deadline(self, pod: Pod) -> None:
        limit_s = pod.document["spec"].get("activeDeadlineSeconds")
        if limit_s:
            await asyncio.sleep(limit_s)
            self._end_pod(pod, "DeadlineExceeded")

    async def _strike(self, pod: Pod, fault: PodFault) -> None:
        (base,) = (container for container in pod.containers if container.name == BASE)
        while not any(fault.at in line for _, line in base.log):
            await asyncio.sleep(0.02)
        if fault.kind is Fault.EVICTED:
            self._end_pod(pod, "Evicted")
            return
        if fault.kind is Fault.OUT_OF_MEMORY:
            base.end_reason = "OOMKilled"
        base.signal(signal.SIGKILL)

    def _end_pod(self, pod: Pod, reason: str) -> None:
        pod.document["status"].update(reason=reason, message=f"The pod was ended: {reason}")
        self._event(pod, "Warning", reason, f"The pod was ended: {reason}")
        for container in pod.containers:
            with suppress(ProcessLookupError):
                container.signal(signal.SIGKILL)
