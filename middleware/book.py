"""The book of one RabbitMQ connection: what became of every message it delivered.

Acknowledgements belong to the connection they came from. Dramatiq 2.2.1 acknowledges by number, and after a reconnect
can acknowledge, and so lose, a message that never ran; a book goes with its connection instead.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

log = logging.getLogger("callboard.rabbitmq")

#: Stands in the book for a message that could not be decoded.
UNREADABLE = object()
#: Seconds that an acknowledgement may wait above a message that isn't done, before it is sent by itself.
STRAGGLER = 0.1


class Book:
    """Open, due and settled delivery tags of one channel. Everything but `release` runs on the connection's thread."""

    def __init__(self, connection: BlockingConnection, channel: BlockingChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._due: dict[int, float] = {}  # tag -> when it fell due
        self.open: OrderedDict[int, Any] = OrderedDict()  # tag -> message, in order of delivery
        self.dead = False
        self.settled = 0

    def enter(self, tag: int, message: Any) -> None:
        """A message was delivered."""
        self.open[tag] = message

    def release(self, acks: Sequence[int], nacks: Sequence[int]) -> None:
        """Settle these: from any thread. On a connection that is gone it does nothing, for so are its messages."""
        if self.dead:
            return
        try:
            self._connection.add_callback_threadsafe(partial(self._settle, acks, nacks))
        except pika.exceptions.AMQPError:
            self.dead = True

    def _settle(self, acks: Sequence[int], nacks: Sequence[int]) -> None:
        """Nacks first: then one multiple ack covers nothing but what is due."""
        now = time.monotonic()
        nacks = [tag for tag in nacks if self.open.pop(tag, None) is not None]
        self._due.update([(tag, now) for tag in acks if self.open.pop(tag, None) is not None])
        for tag in nacks:
            self._channel.basic_nack(tag, requeue=False)
        self.settled += len(nacks) + len(acks)
        self.flush(now)

    def flush(self, now: float, *, all_of_it: bool = False) -> None:
        """Send the acknowledgements that are due: one for all below the oldest open message, single ones for the rest
        when they have waited for long or are many.
        """
        if not self._due:
            return
        lowest_open = next(iter(self.open), None)
        covered = [tag for tag in self._due if lowest_open is None or tag < lowest_open]
        if covered:
            self._channel.basic_ack(max(covered), multiple=True)
            for tag in covered:
                del self._due[tag]
        crowded = all_of_it or len(self._due) > len(self.open)
        for tag in [tag for tag, since in self._due.items() if crowded or now - since > STRAGGLER]:
            self._channel.basic_ack(tag)
            del self._due[tag]

    def messages(self) -> list[Any]:
        """What was delivered and isn't settled; from any thread."""
        while True:
            try:
                return list(self.open.values())
            except RuntimeError:  # it changed meanwhile; asked every two seconds, so locks would cost more
                continue

    def discard(self) -> None:
        """The connection is gone: RabbitMQ delivers all of it again."""
        self.dead = True
        for message in self.open.values():
            if message is not UNREADABLE:
                message.stale = True
        self.open.clear()
        self._due.clear()
