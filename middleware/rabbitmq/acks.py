"""Acknowledges the deliveries of one RabbitMQ channel, in batches, and never on another channel.

A delivery tag is valid only on its own channel. Dramatiq 2.2.1 acknowledges by tag alone, so after a reconnect it can
acknowledge a message that never ran, which is then lost. An AckTracker ends with its channel.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import takewhile

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from callboard.middleware.message.delivery import Delivery, Tag

#: Seconds for which an acknowledgement waits for older open deliveries, before it is sent singly.
STRAGGLER_SECONDS = 0.1


class AckTracker:
    """The open deliveries of one channel, and its due acknowledgements. Only `release`, `held` and `deliveries` may be
    called from other threads than the connection's. `waiting` has the messages that have not begun, in order of
    delivery.

    A delivery that carries many items is acknowledged after the last of them.
    """

    def __init__(self, connection: BlockingConnection, channel: BlockingChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._deliveries: dict[Tag, Delivery] = {}
        self._open: OrderedDict[int, int] = OrderedDict()  # tag -> items that are open, in order of delivery
        self._due: dict[int, float] = {}  # tag -> monotonic time when it became due
        self.waiting: dict[Tag, Delivery] = {}
        self.dead = False
        self.finished = 0  # deliveries that were acknowledged or rejected
        self.finished_items = 0  # finished items, including those of open deliveries

    def enter(self, tag: int, deliveries: Sequence[Delivery]) -> None:
        """Record a delivery: one message, or all messages that it carries."""
        self._open[tag] = len(deliveries)
        self._deliveries.update([(delivery.tag, delivery) for delivery in deliveries])

    def release(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """See `Acks`. After the connection is lost this does nothing: RabbitMQ redelivers its messages."""
        if self.dead:
            return
        try:
            self._connection.add_callback_threadsafe(partial(self._finish, acks, nacks))
        except pika.exceptions.AMQPError:
            self.dead = True

    def _finish(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """Reject, then acknowledge: otherwise a multiple acknowledgement would also cover the tags to reject."""
        now, before, items = time.monotonic(), len(self._open), len(self._deliveries)
        for tag in [tag for tag in map(self._close, nacks) if tag is not None]:
            self._channel.basic_nack(tag, requeue=False)
        self._due.update([(tag, now) for tag in map(self._close, acks) if tag is not None])
        self.finished += before - len(self._open)
        self.finished_items += items - len(self._deliveries)
        self.flush(now)

    def _close(self, tag: Tag) -> int | None:
        """Close one message. Returns the tag of its delivery if no other message of the delivery is open, else None."""
        if self._deliveries.pop(tag, None) is None:
            return None
        self.waiting.pop(tag, None)
        whole = tag[0] if isinstance(tag, tuple) else tag
        self._open[whole] -= 1
        if self._open[whole]:
            return None
        del self._open[whole]
        return whole

    def flush(self, now: float, *, all_of_it: bool = False) -> None:
        """Send the due acknowledgements: a multiple one for all tags below the oldest open delivery; single ones for
        the others if they have waited for `STRAGGLER_SECONDS`, or are more than the open deliveries, or `all_of_it`.
        """
        if not self._due:
            return
        oldest_open = next(iter(self._open), None)
        covered = [tag for tag in self._due if oldest_open is None or tag < oldest_open]
        if covered:
            self._channel.basic_ack(max(covered), multiple=True)
            for tag in covered:
                del self._due[tag]
        crowded = all_of_it or len(self._due) > len(self._open)
        for tag in [tag for tag, since in self._due.items() if crowded or now - since > STRAGGLER_SECONDS]:
            self._channel.basic_ack(tag)
            del self._due[tag]

    def wait(self, deliveries: Iterable[Delivery]) -> None:
        """Add deliveries that may begin to `waiting`: see `Delivery.begin`."""
        for delivery in deliveries:
            delivery.waiting = self.waiting
            self.waiting[delivery.tag] = delivery

    def returnable(self) -> list[Tag]:
        """Return the tags of deliveries that have not begun and can be published again: those with a stamp that are
        neither part of a batch nor a dead letter that was moved back.
        """
        waiting = list(self.waiting.values())
        return [d.tag for d in waiting if d.stamp is not None and not d.mates and not d.was_dead]

    def take(self, tags: Iterable[Tag]) -> list[Delivery]:
        """Remove messages from `waiting`, so that they can't begin; return those that have not begun."""
        return [found for tag in tags if (found := self.waiting.pop(tag, None)) is not None]

    @property
    def newest(self) -> int:
        """The tag of the newest open delivery, or 0."""
        return next(reversed(self._open), 0)

    def open_deliveries(self, after: int = 0) -> int:
        """Return how many deliveries after the tag `after` are open."""
        return len(self._open) - sum(1 for _ in takewhile(lambda tag: tag <= after, self._open))

    @property
    def held(self) -> int:
        """See `Acks`."""
        return len(self._deliveries)

    def deliveries(self) -> list[Delivery]:
        """See `Acks`."""
        return list(self._deliveries.copy().values())

    def discard(self) -> None:
        """Forget all deliveries, because the connection is lost: RabbitMQ redelivers them."""
        self.dead = True
        for delivery in self.deliveries():
            delivery.stale = True
        self._open.clear()
        self._deliveries.clear()
        self.waiting.clear()
        self._due.clear()
