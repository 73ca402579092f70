"""Acknowledges what one RabbitMQ channel delivered: in batches, and never for another channel.

A delivery tag belongs to the channel it came from. Dramatiq 2.2.1 acknowledges by number, so after a reconnect it can
acknowledge, and so lose, a message that never ran. An AckTracker ends with its channel.
"""

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import takewhile

import pika
from pika.adapters.blocking_connection import BlockingChannel, BlockingConnection

from callboard.middleware.message.delivery import Delivery, Tag

#: Seconds that an acknowledgement waits for older deliveries that are still open, before it is sent singly.
STRAGGLER_SECONDS = 0.1


class AckTracker:
    """The open deliveries of one channel, and the acknowledgements that are due. All but `release`, `held` and
    `deliveries` runs on the connection's thread. `waiting` has the messages that have not begun, in order of delivery.

    A delivery that carries many items is acknowledged with the last of them.
    """

    def __init__(self, connection: BlockingConnection, channel: BlockingChannel) -> None:
        self._connection = connection
        self._channel = channel
        self._deliveries: dict[Tag, Delivery] = {}
        self._open: OrderedDict[int, int] = OrderedDict()  # tag -> items that are open, in order of delivery
        self._due: dict[int, float] = {}  # tag -> when it fell due
        self.waiting: dict[Tag, Delivery] = {}
        self.dead = False
        self.finished = 0  # deliveries that were acknowledged or rejected
        self.finished_items = 0  # what they carried, and what open ones carry and is done

    def enter(self, tag: int, deliveries: Sequence[Delivery]) -> None:
        """Note a delivery: one message, or all those that it carries."""
        self._open[tag] = len(deliveries)
        self._deliveries.update([(delivery.tag, delivery) for delivery in deliveries])

    def release(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """See `Acks`. On a connection that is gone this does nothing: RabbitMQ delivers its messages again."""
        if self.dead:
            return
        try:
            self._connection.add_callback_threadsafe(partial(self._finish, acks, nacks))
        except pika.exceptions.AMQPError:
            self.dead = True

    def _finish(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """Reject, then acknowledge: a multiple acknowledgement would otherwise cover the tags to reject, too."""
        now, before, items = time.monotonic(), len(self._open), len(self._deliveries)
        for tag in [tag for tag in map(self._close, nacks) if tag is not None]:
            self._channel.basic_nack(tag, requeue=False)
        self._due.update([(tag, now) for tag in map(self._close, acks) if tag is not None])
        self.finished += before - len(self._open)
        self.finished_items += items - len(self._deliveries)
        self.flush(now)

    def _close(self, tag: Tag) -> int | None:
        """Close one message; return the tag of its delivery when no other message of that is open."""
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
        """Send the acknowledgements that are due: one for all below the oldest open delivery; single ones for the rest
        when they have waited for long, or are many.
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
        """Note that these may begin: see `Delivery.begin`."""
        for delivery in deliveries:
            delivery.waiting = self.waiting
            self.waiting[delivery.tag] = delivery

    def returnable(self) -> list[Tag]:
        """Return what has not begun and can be published again: no batch, no dead letter that somebody has moved back,
        and nothing that Callboard did not send.
        """
        waiting = list(self.waiting.values())
        return [d.tag for d in waiting if d.stamp is not None and not d.mates and not d.was_dead]

    def take(self, tags: Iterable[Tag]) -> list[Delivery]:
        """Take messages off `waiting`, so that they can't begin any more; return those that have not begun."""
        return [found for tag in tags if (found := self.waiting.pop(tag, None)) is not None]

    @property
    def newest(self) -> int:
        """The tag of the newest open delivery, or 0."""
        return next(reversed(self._open), 0)

    def open_deliveries(self, after: int = 0) -> int:
        """Return how many deliveries are open of those after the tag `after`."""
        return len(self._open) - sum(1 for _ in takewhile(lambda tag: tag <= after, self._open))

    @property
    def held(self) -> int:
        """See `Acks`."""
        return len(self._deliveries)

    def deliveries(self) -> list[Delivery]:
        """See `Acks`."""
        return list(self._deliveries.copy().values())

    def discard(self) -> None:
        """The connection is gone: RabbitMQ delivers all of it again."""
        self.dead = True
        for delivery in self.deliveries():
            delivery.stale = True
        self._open.clear()
        self._deliveries.clear()
        self.waiting.clear()
        self._due.clear()
