"""The book of one RabbitMQ connection: what became of every message it delivered.

Acknowledgements belong to the connection they came from. Dramatiq 2.2.1 acknowledges by number, and after a reconnect
can acknowledge, and so lose, a message that never ran; a book goes with its connection instead.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from callboard.middleware.message.delivery import Delivery, Tag

log = logging.getLogger("callboard.rabbitmq")

#: Stands in the book for a message that could not be decoded.
UNREADABLE = object()
#: Stands there for those that one delivery carries.
MANY = object()
#: Seconds that an acknowledgement may wait above a message that isn't done, before it is sent by itself.
STRAGGLER = 0.1


class AckTracker:
    """Open, due and settled delivery tags of one channel. Everything but `release` runs on the connection's thread.

    A delivery that carries many items is settled when the last of them is, and by an acknowledgement.
    """

    def __init__(self, connection: BlockingConnection, channel: BlockingChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._due: dict[int, float] = {}  # tag -> when it fell due
        self.open: OrderedDict[int, Delivery | object] = OrderedDict()  # by tag, in order of delivery
        self._parts: dict[int, dict[int, Delivery]] = {}  # tag of a delivery of many -> those that are open
        self.dead = False
        self.held = 0  # messages that are open, each of those that a delivery carries
        self.settled = 0

    def enter(self, tag: int, delivery: Delivery | object) -> None:
        """Note a delivery, or something that is UNREADABLE."""
        self.open[tag] = delivery
        self.held += 1

    def enter_many(self, tag: int, parts: Sequence[Delivery]) -> None:
        """Note a delivery that carries many items; the tag of each part is (tag, its place)."""
        self._parts[tag] = dict(enumerate(parts))
        self.open[tag] = MANY
        self.held += len(parts)

    def release(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """Settle these: from any thread. On a connection that is gone it does nothing, for so are its messages."""
        if self.dead:
            return
        try:
            self._connection.add_callback_threadsafe(partial(self._settle, acks, nacks))
        except pika.exceptions.AMQPError:
            self.dead = True

    def _settle(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """Nacks first: then one multiple ack covers nothing but what is due."""
        now, before = time.monotonic(), len(self.open)
        rejected = [tag for tag in map(self._close, nacks) if tag is not None]
        self._due.update([(tag, now) for tag in map(self._close, acks) if tag is not None])
        for tag in rejected:
            self._channel.basic_nack(tag, requeue=False)
        self.settled += before - len(self.open)
        self.flush(now)

    def _close(self, tag: Tag) -> int | None:
        """The delivery's tag, if this was open and the last of it that was."""
        if isinstance(tag, tuple):
            return self._close_part(*tag)
        if self.open.pop(tag, None) is None:
            return None
        self.held -= 1
        return tag

    def _close_part(self, tag: int, place: int) -> int | None:
        parts = self._parts.get(tag)
        if parts is None or parts.pop(place, None) is None:
            return None
        self.held -= 1
        if parts:
            return None
        del self._parts[tag], self.open[tag]
        return tag

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

    def deliveries(self) -> list[Delivery]:
        """What was delivered and is not acknowledged, but for what is unreadable; from any thread."""
        while True:
            try:
                single = [delivery for delivery in self.open.values() if isinstance(delivery, Delivery)]
                return single + [part for parts in list(self._parts.values()) for part in parts.values()]
            except RuntimeError:  # it changed meanwhile; asked every two seconds, so locks would cost more
                continue

    def discard(self) -> None:
        """The connection is gone: RabbitMQ delivers all of it again."""
        self.dead = True
        for delivery in self.deliveries():
            delivery.stale = True
        self.open.clear()
        self._parts.clear()
        self.held = 0
        self._due.clear()
