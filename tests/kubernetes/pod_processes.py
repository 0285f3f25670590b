"""Containers of the Kubernetes API double: each is a plain process, the leader of a session of its own.

No namespaces are needed, so it runs wherever tests run. In their place a container's mount paths are rewritten, in its
arguments, its environment and what is executed in it, to the folders that stand for its volumes.
"""

import asyncio
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]


def timestamp(moment: datetime | None = None) -> str:
    """Return a moment, by default now, as Kubernetes writes it."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Container:
    """One container of a pod: its process, its log and its state as the API shows it."""

    def __init__(self, spec: Json, volumes: Mapping[str, Path]) -> None:
        self.spec, self.name = spec, spec["name"]
        self._mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in spec.get("volumeMounts", [])}
        self._environment: dict[str, str] = {}
        self._process: Process | None = None
        self._pump: asyncio.Task[None] | None = None
        self.log: list[tuple[datetime, bytes]] = []
        self.state: Json = {"waiting": {"reason": "ContainerCreating"}}
        self.end_reason: str | None = None  # why the node killed it, e.g. OOMKilled

    @property
    def running(self) -> bool:
        return "running" in self.state

    def localised(self, text: str) -> str:
        """Replace the paths of the container's mounts by the folders that stand for them."""
        mounts = "|".join(re.escape(mount) for mount in sorted(self._mounts, key=len, reverse=True))
        if not mounts:
            return text
        return re.sub(rf"(?<![\w/.-])({mounts})(?![\w.-])", lambda found: str(self._mounts[found[0]]), text)

    async def start(self, folder: Path, environment: Mapping[str, str]) -> None:
        # PATH is the image's, whose folders here may lie where a volume is mounted there.
        self._environment = {
            name: value if name == "PATH" else self.localised(value) for name, value in environment.items()
        }
        arguments = [self.localised(part) for part in (self.spec.get("command") or []) + (self.spec.get("args") or [])]
        self._process = await asyncio.create_subprocess_exec(
            *arguments, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, env=self._environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        self.state = {"running": {"startedAt": timestamp()}}
        self._pump = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            self.log.append((datetime.now(UTC), line))

    async def wait(self) -> int:
        """Wait for the end of the process and of its log; return its exit code as Kubernetes counts."""
        assert self._process is not None
        assert self._pump is not None
        exit_code = await self._process.wait()
        self.signal(signal.SIGKILL)  # what it left behind ends with it, as in a container
        await self._pump
        if exit_code < 0:
            exit_code = 128 - exit_code
        started = self.state["running"]["startedAt"]
        reason = self.end_reason or ("Error" if exit_code else "Completed")
        self.state = {
            "terminated": {
                "exitCode": exit_code, "reason": reason, "startedAt": started, "finishedAt": timestamp(),
            }
        }  # fmt: skip
        return exit_code

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the container."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    async def execute(self, *command: str) -> tuple[bytes, bytes]:
        """Run a command in the container; return its output and errors.

        A `kill` goes to this container alone: in a container it could reach no other process, here it could.
        """
        if any("kill " in part for part in command):
            self.signal(signal.SIGINT)
            return b"", b""
        process = await asyncio.create_subprocess_exec(
            *map(self.localised, command), stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=self._environment
        )
        return await process.communicate()

    def status(self) -> Json:
        return {
            "name": self.name, "image": self.spec["image"], "imageID": "", "restartCount": 0,
            "ready": self.running, "started": self.running, "state": self.state, "lastState": {},
        }  # fmt: skip
