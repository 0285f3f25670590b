"""A small HTTP proxy in front of a real S3 server that breaks chosen requests in chosen ways."""

import http.client
import re
import ssl
import threading
import time
from collections import deque
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

PAUSE_S = 0.2  # between the pieces of a slow answer


class Fault(Enum):
    INTERNAL_ERROR = auto()  # 500 with an S3 error document
    SLOW_DOWN = auto()  # 503 SlowDown
    TOO_MANY_REQUESTS = auto()  # 429 without a document
    HTML_GATEWAY = auto()  # 502 with a proxy's own HTML page
    DROP = auto()  # connection closed before the request reaches the server
    DROP_ANSWER = auto()  # the server does it, the answer is lost
    CUT_ANSWER = auto()  # connection closed in the middle of the answer's body
    FLIP_BIT = auto()  # the body of the answer differs in one bit
    SLOW = auto()  # the answer's body comes in small pieces with pauses between them
    STALL = auto()  # no answer until the client gives up


_DOCUMENTS = {
    Fault.INTERNAL_ERROR: (500, "application/xml", "<Error><Code>InternalError</Code><Message>no</Message></Error>"),
    Fault.SLOW_DOWN: (503, "application/xml", "<Error><Code>SlowDown</Code><Message>no</Message></Error>"),
    Fault.TOO_MANY_REQUESTS: (429, "text/plain", ""),
    Fault.HTML_GATEWAY: (502, "text/html", "<html>Bad Gateway</html>"),
}


class FaultProxy:
    """Forwards every request to `upstream` (host:port); `faults` are used up one a request of a chosen method."""

    def __init__(self, upstream: str, tls: ssl.SSLContext | None = None) -> None:
        self.faults: deque[Fault] = deque()
        self.methods = {"GET", "PUT", "HEAD", "DELETE", "POST"}  # whose requests faults are for
        self.seen: list[str] = []  # "GET /bucket/key", in order
        self.years_older = 0  # how much older than they are listings say that objects are
        self.stall_s = 30.0  # how long a client waits for nothing, unless it gives up before
        self.released = threading.Event()  # ends stalls
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                proxy.seen.append(f"{self.command} {self.path.split('?')[0]}")
                fault = proxy.faults.popleft() if proxy.faults and self.command in proxy.methods else None
                if fault in _DOCUMENTS:
                    status, kind, text = _DOCUMENTS[fault]
                    self.answer(status, {"Content-Type": kind}, text.encode())
                    return
                if fault is Fault.STALL:
                    proxy.released.wait(proxy.stall_s)
                if fault in (Fault.DROP, Fault.STALL):
                    self.close_connection = True
                    return
                server = http.client.HTTPConnection(upstream, timeout=30)
                server.request(self.command, self.path, body, dict(self.headers))
                reply = server.getresponse()
                data = reply.read()
                server.close()
                if fault is Fault.DROP_ANSWER:
                    self.close_connection = True
                    return
                if proxy.years_older:
                    data = re.sub(
                        rb"(?<=<LastModified>)\d{4}", lambda year: b"%d" % (int(year[0]) - proxy.years_older), data
                    )
                if fault is Fault.FLIP_BIT:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                self.answer(reply.status, dict(reply.getheaders()), data, fault)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815 - names of the base class

            def answer(self, status: int, headers: dict[str, str], data: bytes, fault: Fault | None = None) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
                self.send_header("Content-Length", length)
                self.end_headers()
                cut = fault is Fault.CUT_ANSWER
                piece = len(data) // 10 + 1 if fault is Fault.SLOW else len(data) + 1
                for start in range(0, len(data) // 2 if cut else len(data), piece) if self.command != "HEAD" else ():
                    self.wfile.write(data[start : len(data) // 2 if cut else start + piece])
                    if fault is Fault.SLOW:
                        time.sleep(PAUSE_S)
                self.close_connection = self.close_connection or cut

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.endpoint = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
