"""Reads a consumer's deliveries off its connection.

pika makes three frame objects of each message, decodes all of its properties, and looks each frame up in a table of
callbacks: together a third of what a worker that only receives has to do. A consumer needs four things of a delivery.
Every other frame is pika's, and so is a delivery should pika ever read its connections in another way.
"""

from struct import Struct
from typing import Protocol

import pika

#: A frame, by the AMQP 0-9-1 specification: type, channel, size of what follows; that; one octet that ends it.
FRAME = Struct(">BHL")
METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
#: Class and method of Basic.Deliver; after the consumer's tag come the delivery's, and whether it came before.
DELIVER = b"\x00\x3c\x00\x3c"
TAG = Struct(">QB")
#: In a header: the size of the body.
BODY_SIZE = Struct(">Q")


class Take(Protocol):
    """What becomes of a delivery."""

    def __call__(self, tag: int, body: bytes, *, redelivered: bool) -> None:
        """Take the delivery with this tag, as soon as all of its body is there."""
        ...


class DeliveryReader(pika.SelectConnection):  # type: ignore[misc]
    """A connection with one channel that consumes."""

    _take: Take
    _rest = b""
    _coming: tuple[int, int, bool] | None = None  # channel, tag, redelivered of the delivery being read
    _missing = 0  # bytes of its body
    _parts: list[bytes]

    def _on_data_available(self, data_in: bytes) -> None:
        data = self._rest + data_in if self._rest else data_in
        start, size = 0, len(data)
        while start + FRAME.size <= size:
            kind, channel, length = FRAME.unpack_from(data, start)
            if kind not in (METHOD, HEADER, BODY, HEARTBEAT):
                break  # no frame: a server that speaks another protocol
            payload = start + FRAME.size
            end = payload + length + 1
            if end > size:
                self._rest = data[start:]
                return
            if self._read(kind, channel, data, payload, end - 1):
                self.bytes_received += end - start  # by which pika knows that the server is alive
            else:
                super()._on_data_available(data[start:end])
            start = end
        else:
            self._rest = data[start:]
            return
        super()._on_data_available(data[start:])

    def _read(self, kind: int, channel: int, data: bytes, payload: int, end: int) -> bool:
        """Whether this frame was part of a delivery."""
        if kind == METHOD:
            if data[payload : payload + 4] != DELIVER:
                return False
            tag, redelivered = TAG.unpack_from(data, payload + 5 + data[payload + 4])
            self._coming, self._parts = (channel, tag, bool(redelivered & 1)), []
            return True
        if self._coming is None or channel != self._coming[0]:
            return False
        if kind == HEADER:
            (self._missing,) = BODY_SIZE.unpack_from(data, payload + 4)
        else:
            self._parts.append(data[payload:end])
            self._missing -= end - payload
        if self._missing <= 0:
            (_, tag, redelivered), self._coming = self._coming, None
            self._take(tag, b"".join(self._parts), redelivered=redelivered)
        return True


def delivery_reader(take: Take) -> type[pika.SelectConnection]:
    """The class of a connection that hands its deliveries to `take`, on the connection's thread."""
    return type("Reading", (DeliveryReader,), {"_take": staticmethod(take)})
