"""A client that never finishes the head of its request does not keep its connection."""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from callboard.commands import request_heads
from callboard.commands.request_heads import TimedHeads
from tests.support.webapp import served

TIMEOUT = 300.0
HEAD = b"POST / HTTP/1.1\r\nhost: here\r\ncontent-length: 4\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    body = b""
    while len(body) < len(b"body"):
        body += (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(request_heads, "HEAD_SECONDS", 1.0)
    with served(echo, http=TimedHeads) as address:
        yield urlsplit(address).port or 0


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
    with connect(port) as patient:
        patient.sendall(HEAD + b"bo")
        with connect(port) as slow:
            assert slow.recv(1) == b""  # made later, and closed meanwhile
        patient.sendall(b"dy")
        answer = b""
        while not answer.endswith(b"body"):
            part = patient.recv(1_000)
            assert part
            answer += part
