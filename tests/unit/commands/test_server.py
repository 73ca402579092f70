"""The socket on which `callboard serve` listens."""

import gc
import socket

import pytest
import uvicorn

from callboard.commands.server import listen, serve


def test_a_connection_sends_at_once_what_is_written() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_idle_connection_stays_open_for_longer_than_at_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        kept.append(server.config.timeout_keep_alive)
        sockets[0].close()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    serve(port=0, link=False)
    assert kept[0] > 120, "Caddy keeps them for two minutes"
