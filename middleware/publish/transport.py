"""How messages get onto a broker: to RabbitMQ with asynchronous confirms, to any other by its own `enqueue`."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dramatiq import Broker

from callboard.middleware.message import envelope
from callboard.middleware.process.outage import reason
from callboard.sql.rows import Outgoing

log = logging.getLogger("callboard.publisher")


class Unreachable(RuntimeError):
    """The broker can't be reached, or stopped answering; what it had confirmed is in `confirmed`."""

    def __init__(self, why: str, confirmed: Sequence[bool] = ()) -> None:
        super().__init__(why)
        self.confirmed = list(confirmed)


class Refused(Unreachable):
    """The broker takes no message for this queue at present; for others it may."""


class Transport(Protocol):
    """What the publisher needs of a broker. A link belongs to one thread; `trouble` may be read by any."""

    trouble: str | None  # what keeps messages from the broker; None: nothing that is known
    carries: bool  # those who consume it take messages that carry many items
    in_order: bool  # a queue gives its messages in the order in which they came

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """Publish a batch; tells of each message whether the broker has it. Raises Unreachable."""

    def depth(self, queue: str) -> int | None:
        """Messages that lie ready in a queue, None when the broker can't tell; raises Unreachable."""

    def serve(self, *, mend: bool = False) -> None:
        """Let the connection do what is due (heartbeats), without waiting; with `mend` one that was lost is opened
        again, so that `trouble` tells what is so now; raises Unreachable when nothing can be published.
        """

    def close(self) -> None:
        """Give the connection back."""


class EnqueueTransport:
    """The way onto a broker that confirms by returning: the in-process one, Redis, anybody's."""

    in_order = carries = False

    def __init__(self, broker: Broker, enqueue: Callable[..., Any]) -> None:
        self._broker = broker
        self._enqueue = enqueue
        self.trouble: str | None = None

    def publish(self, batch: Sequence[Outgoing]) -> list[bool]:
        """See Link."""
        confirmed: list[bool] = []
        for out in batch:
            try:
                if not out.dead:  # only RabbitMQ keeps dead letters where others may put theirs
                    self._enqueue(envelope.message(out))
            except Exception as error:
                self.trouble = f"{type(self._broker).__name__} refused a message: {reason(error)}"
                raise Unreachable(self.trouble, confirmed) from error
            confirmed.append(True)
        self.trouble = None
        return confirmed

    def depth(self, queue: str) -> int | None:
        """See Link."""
        waiting = getattr(self._broker, "queues", {})
        if not isinstance(waiting, dict):
            return None
        return int(waiting[queue].qsize()) if queue in waiting else 0

    def serve(self, *, mend: bool = False) -> None:
        """See Link."""

    def close(self) -> None:
        """See Link."""
