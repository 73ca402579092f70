"""Closes connections of `callboard serve` on which the head of a request does not come to its end."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol  # one of two classes, by what is installed

#: Seconds that the head of a request may take, from the connection or from its first byte.
HEAD_SECONDS = 30.0


class TimedHeads(AutoHTTPProtocol):  # type: ignore[misc,valid-type]
    """Uvicorn's protocol, with a limit for the head of a request.

    Uvicorn closes a connection only when it is idle after an answer. A client that sends nothing, or a byte now and
    then, would keep it for ever, and with it a file of the process.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Begin to wait for a head with its first bytes, and end with its last."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._end()
        elif self._timer is None and (before is None or before.response_complete):
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
