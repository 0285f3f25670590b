"""How much and how often a client may send to the ingest API."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scan2twin.capture.models import MAX_DOCUMENT_BYTES

MAX_CLIENTS = 10_000  # remembered at a time; the one idle for longest is forgotten


@dataclass(frozen=True)
class Rate:
    """A token bucket: `burst` requests at once, then `per_second`."""

    burst: int
    per_second: float


class RateLimiter:
    """Counts requests by client, in this process alone. Safe for many threads."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, at what time

    def wait_s(self, client: str) -> float:
        """Take one request of `client` and return 0, or return after how many seconds it may try again."""
        now = self._clock()
        with self._lock:
            left, since = self._buckets.pop(client, (float(self._rate.burst), now))
            left = min(self._rate.burst, left + (now - since) * self._rate.per_second)
            allowed = left >= 1
            self._buckets[client] = (left - allowed, now)
            if len(self._buckets) > MAX_CLIENTS:
                self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate.per_second


class BodyLimit:
    """ASGI middleware that refuses bodies over the size of the largest document, whatever their headers say."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_DOCUMENT_BYTES) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max_bytes:
            await self._refusal()(scope, receive, send)
            return
        received, started = 0, False

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, limited, noted)
        except _TooLargeError:
            if not started:
                await self._refusal()(scope, receive, send)

    def _refusal(self) -> JSONResponse:
        return JSONResponse({"detail": f"a request has at most {self._max_bytes} bytes; images go to the store"}, 413)


class _TooLargeError(Exception):
    """A body went over the limit while it was read."""
