"""One delivery of a message by a broker: where it is acknowledged, and what has become of it so far."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dramatiq.broker import MessageProxy

from callboard.middleware.message.stamp import Stamp

if TYPE_CHECKING:
    from callboard.middleware.message.attempt import Attempt

#: A delivery's tag on its connection; of a delivery that carries many items, the tag and the place of one of them.
Tag: TypeAlias = int | tuple[int, int]


class Acks(Protocol):
    """The deliveries of one connection that are not acknowledged. Any thread may use it."""

    @property
    def held(self) -> int:
        """How many messages are not acknowledged; a delivery may carry many."""

    def deliveries(self) -> "list[Delivery]":
        """The deliveries that are not acknowledged, each of those that one carries."""

    def release(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """Acknowledge and reject these deliveries, soon; a tag that is not open changes nothing. Raises nothing."""


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivery of a message; a consumer sets it as the message's attribute `delivery`.

    `stamp` is None for a message from a producer that doesn't know Callboard, or one that can't be decoded. `mates` are
    the other messages of its batch: they are begun with it, or after it when it is not begun.
    """

    acks: Acks
    tag: Tag
    stamp: Stamp | None
    redelivered: bool = False
    was_dead: bool = False  # it came from the dead letters: somebody has moved it back to its queue
    mates: list[MessageProxy] = field(default_factory=list)
    attempt: "Attempt | None" = None  # until it ends
    seen: bool = False  # `before_process_message` ran
    dropped: bool = False  # it must not run, and no other middleware hears of it
    deferred: bool = False  # not acknowledged when Dramatiq says so, but after a commit, or never
    aside: bool = False  # a side thread acknowledges or defers it; Dramatiq's ack is ignored
    stale: bool = False  # its connection is gone: the broker delivers it again
    waiting: "dict[Tag, Delivery] | None" = None  # those of its connection that have not begun; None: they are not kept
    span: tuple[Any, Any] | None = None  # OpenTelemetry's, of its attempt, and the token that ends its context

    @property
    def came_before(self) -> bool:
        """Whether its message was delivered before: its item may run, or have run."""
        return self.redelivered or self.was_dead

    @property
    def carried(self) -> bool:
        """Whether it came in a delivery that carries many items: that is always acknowledged, never rejected."""
        return isinstance(self.tag, tuple)

    def begin(self) -> bool:
        """Return whether it may begin: not once it was taken off `waiting`, to be published again. Thread-safe."""
        if self.waiting is not None and self.waiting.pop(self.tag, None) is None:
            self.deferred = True
            return False
        self.waiting = None
        return True

    def finish(self, *, failed: bool) -> None:
        """Acknowledge it, or reject it when it `failed`, now that Dramatiq says so; unless that is deferred."""
        if not self.deferred and not self.aside:
            release([(self, failed)])


def delivery_of(message: Any) -> Delivery | None:
    """Return the delivery of a message; None if no consumer delivered it.

    A broker of the app's may run an actor where it is sent, as brokers for tests do; nothing of that is recorded.
    """
    return getattr(message, "delivery", None)


def attempt_of(message: Any) -> "Attempt | None":
    """Return the attempt that a message carries, until it ends."""
    delivery = delivery_of(message)
    return None if delivery is None else delivery.attempt


def release(deliveries: Iterable[tuple[Delivery, bool]]) -> None:
    """Acknowledge these deliveries, or reject those with True; one call for each connection."""
    by_connection: dict[Acks, tuple[list[Tag], list[Tag]]] = {}
    for delivery, rejected in deliveries:
        lists = by_connection.setdefault(delivery.acks, ([], []))
        lists[rejected and not delivery.carried].append(delivery.tag)
    for acks, (acked, nacked) in by_connection.items():
        acks.release(acked, nacked)
