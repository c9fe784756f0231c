"""A proxy before an S3 server on loopback that loses, cuts and damages answers as it is told."""

from __future__ import annotations

import http.client
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP = {"connection", "content-length", "date", "server", "transfer-encoding"}
LARGE = 400  # bytes: an answer worth cutting or damaging


@dataclass
class Faults:
    """How often each fault befalls a request, as a probability; `done` counts those that did.

    Attributes:
        busy: answered with 503.
        dropped: the connection is closed before the request is passed on.
        lost: a change is made and its answer lost.
        cut: half of an answer comes.
        flipped: one bit of an answer is another.
        down: no request is answered.
        first: only the first answer for each address is faulty.
    """

    busy: float = 0.0
    dropped: float = 0.0
    lost: float = 0.0
    cut: float = 0.0
    flipped: float = 0.0
    down: bool = False
    first: bool = False
    done: Counter[str] = field(default_factory=Counter)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    seen: set[str] = field(default_factory=set)

    def strikes(self, fault: str, address: str) -> bool:
        """Whether a fault befalls the request under way."""
        if self.rng.random() >= getattr(self, fault) or (self.first and address in self.seen):
            return False
        self.seen.add(address)
        self.done[fault] += 1
        return True


@contextmanager
def faulty_proxy(backend: str, faults: Faults) -> Iterator[str]:
    """The address of a proxy before `backend`, another address, while the block runs."""
    host = backend.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            address = f"{self.command} {self.path}"
            if faults.down or faults.strikes("dropped", address):
                self.hang_up()
            elif faults.strikes("busy", address):
                data = b"" if self.command == "HEAD" else BUSY
                self.answer(503, [("Content-Length", str(len(data)))], data)
            else:
                self.pass_on(body, address)

        def pass_on(self, body: bytes, address: str) -> None:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            if body or self.command in ("PUT", "POST"):
                headers["Content-Length"] = str(len(body))
            line = http.client.HTTPConnection(host, timeout=60)
            line.request(self.command, self.path, body, headers)
            came = line.getresponse()
            data = came.read()
            line.close()
            if self.command in ("PUT", "POST", "DELETE") and faults.strikes("lost", address):
                self.hang_up()
                return
            length = came.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            kept = [(k, v) for k, v in came.getheaders() if k.lower() not in HOP]
            large = self.command == "GET" and len(data) > LARGE
            if large and faults.strikes("cut", address):
                half = data[: len(data) // 2]
                self.answer(came.status, [*kept, ("Content-Length", length or "0")], half)
                self.hang_up()
                return
            if large and "list-type" not in self.path and faults.strikes("flipped", address):
                at = faults.rng.randrange(len(data))
                data = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
            self.answer(came.status, [*kept, ("Content-Length", length or "0")], data)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = serve

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # the client has hung up, too

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
