"""A client that never finishes the head of its request does not keep its connection."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from callboard.commands import request_heads
from callboard.commands.request_heads import TimedHeads
from callboard.commands.server import listen

TIMEOUT = 300.0
HEAD = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 4\r\n\r\n"


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = b""
    while len(body) < len(b"body"):
        body += (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(request_heads, "HEAD_SECONDS", 0.2)
    server = uvicorn.Server(uvicorn.Config(echo, log_level="error", lifespan="off", http=TimedHeads))
    listener = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(TIMEOUT)


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), TIMEOUT)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost:", HEAD[:-1]])
def test_a_head_that_does_not_end_is_not_waited_for(port: int, sent: bytes) -> None:
    with connect(port) as slow:
        slow.sendall(sent)
        assert slow.recv(1) == b""


def test_a_second_head_on_a_connection_is_not_waited_for_either(port: int) -> None:
    with connect(port) as slow:
        slow.sendall(HEAD + b"body")
        answer = b""
        while not answer.endswith(b"body"):
            answer += slow.recv(1_000)
        slow.sendall(HEAD[:-1])
        assert slow.recv(1) == b""


def test_a_body_may_take_longer(port: int) -> None:
    with connect(port) as patient, connect(port) as slow:
        patient.sendall(HEAD + b"bo")
        assert slow.recv(1) == b""  # made later, and closed meanwhile
        patient.sendall(b"dy")
        answer = b""
        while not answer.endswith(b"body"):
            part = patient.recv(1_000)
            assert part
            answer += part
