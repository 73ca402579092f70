"""Closes connections of `callboard serve` on which the head of a request stays incomplete."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol  # one of two classes, depending on the installed packages

#: Maximum seconds until the head of a request is complete, from the connection or from its first byte.
HEAD_SECONDS = 30.0


class TimedHeads(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """Uvicorn's protocol, with a time limit for the head of a request.

    Uvicorn closes a connection only if it is idle after an answer. A client that sends nothing, or a byte now and then,
    would keep the connection and its file descriptor forever.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the time limit for the first head."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Start the time limit at the first bytes of a head, and stop it at its last byte."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._end()
        elif self._timer is None and (before is None or before.response_complete):
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the time limit."""
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
