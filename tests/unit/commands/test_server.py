"""The socket on which `callboard serve` listens."""

import socket

from callboard.commands.server import listen


def test_a_connection_sends_at_once_what_is_written() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
