"""A Kubernetes API server for tests: the calls that the unmodified operator, trigger and clients make, nothing else.

Strict where a real one is: names, labels, the schema of pods, credentials. Every call of Airflow is written down as
verb and resource, so that the role in deploy/ can be held to exactly what is needed.
"""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import kubernetes_validate
from aiohttp import WSMsgType, web
from cluster import DEFAULT_GRACE_S, Cluster, Pod
from pod_processes import Container, Json
from selection import field_selects, merge, selects

KUBERNETES_VERSION = "1.31"
AIRFLOW, TESTER = "airflow", "tester"  # users, whose tokens are their names
POLL_S = 0.05
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


@dataclass
class Refusal:
    """The next `times` requests of a method to a path that matches are answered with `code`."""

    code: int
    times: int
    method: str
    path: str


class ApiError(Exception):
    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def answer(self) -> web.Response:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code,
                  "reason": self.reason, "message": str(self)}  # fmt: skip
        return web.json_response(status, status=self.code)


class ApiDouble:
    """`with ApiDouble(cluster) as api:` serves the cluster on loopback, in a thread of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.calls: set[tuple[str, str]] = set()  # verb and resource of whatever Airflow asked for
        self.refusals: list[Refusal] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def delete_all_pods(self) -> None:
        """End every pod at once."""
        asyncio.run_coroutine_threadsafe(self.cluster.delete_all(), self._loop).result(30)

    def kubeconfig(self, path: Path, user_name: str = TESTER) -> Path:
        """Write a kubeconfig of a user for this server and return its path."""
        cluster = {"name": "double", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "double", "context": {"cluster": "double", "user": user_name}}
        user = {"name": user_name, "user": {"token": user_name}}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "double",
                  "clusters": [cluster], "contexts": [context], "users": [user]}  # fmt: skip
        path.write_text(json.dumps(config))
        return path

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._guard], client_max_size=1 << 20)
        pods, pod = "/api/v1/namespaces/{namespace}/pods", "/api/v1/namespaces/{namespace}/pods/{name}"
        app.add_routes(
            [
                web.get("/version", self._version),
                web.get("/version/", self._version),
                web.post(pods, self._create),
                web.get(pods, self._list_pods),
                web.get(pod, self._read),
                web.patch(pod, self._patch),
                web.delete(pod, self._delete),
                web.get(f"{pod}/log", self._log),
                web.get(f"{pod}/exec", self._exec),
                web.get("/api/v1/namespaces/{namespace}/events", self._list_events),
                web.post("/api/v1/namespaces/{namespace}/secrets", self._create_secret),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        await self.cluster.delete_all()
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable) -> web.StreamResponse:  # type: ignore[type-arg]
        try:
            self._admit(request)
            response: web.StreamResponse = await handler(request)
        except ApiError as error:
            return error.answer()
        return response

    def _admit(self, request: web.Request) -> None:
        user = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if user not in (AIRFLOW, TESTER):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if user == AIRFLOW:
            self.calls.add(_verb_and_resource(request))
        for refusal in self.refusals:
            if refusal.times and refusal.method == request.method and re.search(refusal.path, request.path):
                refusal.times -= 1
                raise ApiError(refusal.code, "Injected", "refused for a test")

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "31", "gitVersion": f"v{KUBERNETES_VERSION}.0"})

    async def _create(self, request: web.Request) -> web.Response:
        document = await request.json()
        document["metadata"]["namespace"] = request.match_info["namespace"]
        self._check(document)
        document.update(kind="Pod", apiVersion="v1")
        return web.json_response(self.cluster.create(document).document, status=201)

    def _check(self, document: Json) -> None:
        """Refuse a pod that a real server would refuse."""
        metadata, spec = document["metadata"], document["spec"]
        namespace, name = metadata["namespace"], metadata.get("name", "")
        if namespace not in self.cluster.namespaces:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')
        if (namespace, name) in self.cluster.pods:
            raise ApiError(409, "AlreadyExists", f'pods "{name}" already exists')
        wrong = [] if _NAME.fullmatch(name) else [f"metadata.name: {name!r}"]
        wrong += [f"label {key}: {value!r}" for key, value in metadata.get("labels", {}).items()
                  if not _LABEL.fullmatch(value)]  # fmt: skip
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        wrong += [f"volumeMounts: no volume {mount['name']}" for container in spec["containers"]
                  for mount in container.get("volumeMounts", []) if mount["name"] not in volumes]  # fmt: skip
        try:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            wrong.append(f"{'.'.join(map(str, error.path))}: {error.message}"[:300])
        if wrong:
            raise ApiError(422, "Invalid", f"Pod {name!r} is invalid: {'; '.join(wrong)}")

    async def _create_secret(self, request: web.Request) -> web.Response:
        document = await request.json()
        metadata = document["metadata"]
        if metadata["name"] in self.cluster.secrets:
            raise ApiError(409, "AlreadyExists", f'secrets "{metadata["name"]}" already exists')
        try:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise ApiError(422, "Invalid", f"{'.'.join(map(str, error.path))}: {error.message}"[:300]) from None
        self.cluster.create_secret(document)
        return web.json_response(document, status=201)

    def _pod(self, request: web.Request) -> Pod:
        pod = self.cluster.pods.get((request.match_info["namespace"], request.match_info["name"]))
        if pod is None:
            raise ApiError(404, "NotFound", f'pods "{request.match_info["name"]}" not found')
        return pod

    async def _read(self, request: web.Request) -> web.Response:
        return web.json_response(self._pod(request).document)

    async def _patch(self, request: web.Request) -> web.Response:
        pod = self._pod(request)
        merge(pod.document, await request.json())
        self.cluster.changed(pod)
        return web.json_response(pod.document)

    async def _delete(self, request: web.Request) -> web.Response:
        pod = self._pod(request)
        options = await request.json() if request.can_read_body else {}
        grace = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
        default = pod.document["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
        self._deletion = asyncio.create_task(self.cluster.delete(pod, float(default if grace is None else grace)))
        return web.json_response(pod.document)

    async def _list_pods(self, request: web.Request) -> web.StreamResponse:
        return await self._list(request, "Pod", [pod.document for pod in self.cluster.pods.values()])

    async def _list_events(self, request: web.Request) -> web.StreamResponse:
        return await self._list(request, "Event", self.cluster.events)

    async def _list(self, request: web.Request, kind: str, documents: list[Json]) -> web.StreamResponse:
        def wanted(document: Json) -> bool:
            metadata = document["metadata"]
            return (
                metadata["namespace"] == request.match_info["namespace"]
                and selects(request.query.get("labelSelector", ""), metadata.get("labels", {}))
                and field_selects(request.query.get("fieldSelector", ""), document)
            )

        if request.query.get("watch", "").lower() not in ("true", "1"):
            version = {"resourceVersion": str(self.cluster.version)}
            items = list(filter(wanted, documents))
            return web.json_response({"kind": f"{kind}List", "apiVersion": "v1", "metadata": version, "items": items})
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        until = datetime.now(UTC) + timedelta(seconds=float(request.query.get("timeoutSeconds") or 3600))
        after = int(request.query.get("resourceVersion") or 0)
        position = 0
        with _ends_quietly():
            while datetime.now(UTC) < until:
                new = self.cluster.changes[position:]
                position += len(new)
                for kind_of, what, document in new:
                    version_of = int(document["metadata"]["resourceVersion"])
                    if kind_of == kind and version_of > after and wanted(document):
                        await response.write(json.dumps({"type": what, "object": document}).encode() + b"\n")
                await asyncio.sleep(POLL_S)
        return response

    async def _log(self, request: web.Request) -> web.StreamResponse:
        container = self._container(request)
        if "waiting" in container.state:
            raise ApiError(400, "BadRequest", f"container {container.name!r} is waiting to start")
        query = request.query
        since = datetime.now(UTC) - timedelta(seconds=float(query.get("sinceSeconds") or 1e8))
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)

        async def lines() -> AsyncIterator[bytes]:
            position = 0
            while True:
                running = container.running and query.get("follow", "").lower() == "true"
                new = container.log[position:]
                position += len(new)
                for moment, line in new:
                    if moment >= since:
                        stamp = f"{moment:%Y-%m-%dT%H:%M:%S.%f}000Z " if query.get("timestamps", "") == "True" else ""
                        yield stamp.encode() + line
                if not running:
                    return
                await asyncio.sleep(POLL_S)

        with _ends_quietly():
            async for line in lines():
                await response.write(line)
        return response

    async def _exec(self, request: web.Request) -> web.WebSocketResponse:
        container = self._container(request)
        if not container.running:
            raise ApiError(500, "InternalError", f"container {container.name!r} is not running")
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)

        async def execute(*command: str) -> bool:
            """Run a command and send what it says; tell whether it said anything."""
            said = await container.execute(*command)
            for channel, data in zip((b"\x01", b"\x02"), said, strict=True):
                if data:
                    await socket.send_bytes(channel + data)
            return any(said)

        with _ends_quietly():
            if request.query.get("stdin", "").lower() != "true":
                await execute(*request.query.getall("command"))
            else:  # a shell that is told line by line
                async for message in socket:
                    data = message.data.encode() if message.type is WSMsgType.TEXT else message.data
                    if data[:1] == b"\x00" and not await execute("sh", "-c", data[1:].decode()):
                        break
            await socket.send_bytes(b"\x03" + json.dumps({"status": "Success"}).encode())
            await socket.close()
        return socket

    def _container(self, request: web.Request) -> Container:
        pod = self._pod(request)
        name = request.query.get("container") or pod.containers[0].name
        for container in pod.containers:
            if container.name == name:
                return container
        raise ApiError(400, "BadRequest", f"container {name} is not valid for pod {pod.key[1]}")


class _ends_quietly:  # noqa: N801 - reads as a statement
    """The client went away: that is its right."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, ConnectionError)


def _verb_and_resource(request: web.Request) -> tuple[str, str]:
    """Return the verb and the resource for which RBAC must give leave."""
    parts = request.path.strip("/").split("/")
    if parts[0] == "version":
        return "get", "version"
    resource = "/".join([parts[4], *parts[6:]])
    verb = _VERBS[request.method]
    if request.method == "GET" and len(parts) == 5:
        verb = "watch" if request.query.get("watch", "").lower() in ("true", "1") else "list"
    return ("create" if resource == "pods/exec" else verb), resource
