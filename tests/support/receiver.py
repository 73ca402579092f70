"""A webhook's receiver: a real HTTP server on loopback that notes what it is sent, and answers as it is told."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, NamedTuple, TypeAlias

#: A status, or what is done instead of answering with one.
Answer: TypeAlias = int | Callable[[BaseHTTPRequestHandler], object]


class Call(NamedTuple):
    """A POST that came, whole."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The id to tell repetitions by."""
        return self.headers["webhook-id"]

    @property
    def told(self) -> dict[str, Any]:
        """Its body."""
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """`url` is where it is; `answers` are used up one a call, then it is `usual`."""

    port: int = 0
    calls: list[Call] = field(default_factory=list)
    answers: deque[Answer] = field(default_factory=deque)
    usual: Answer = 204

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/hook"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        """A POST came."""
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.calls.append(Call(handler.path, dict(handler.headers), body))
        answer = self.answers.popleft() if self.answers else self.usual
        if callable(answer):
            answer(handler)
            return
        handler.send_response(answer)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


def sends_on(location: str, status: int = 307) -> Answer:
    """A redirect."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


@contextmanager
def receiver() -> Iterator[Receiver]:
    """One that is there for the length of the block."""
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        """Passes it on."""

        def do_POST(self) -> None:
            try:
                made.handle(self)
            except OSError:  # who called hung up
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 — the name it has
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    made.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
