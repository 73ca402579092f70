"""One delivery of a message by a broker: where it is acknowledged, and its state."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from dramatiq.broker import MessageProxy

from callboard.middleware.message.stamp import Stamp

if TYPE_CHECKING:
    from callboard.middleware.message.attempt import Attempt

#: A delivery's tag on its connection; for one item of a delivery that carries many, the tag and the item's place in it.
Tag: TypeAlias = int | tuple[int, int]


class Acks(Protocol):
    """The deliveries of one connection that are not acknowledged. Any thread may use it."""

    @property
    def held(self) -> int:
        """How many messages are not acknowledged; a delivery may carry many."""

    def deliveries(self) -> "list[Delivery]":
        """The deliveries that are not acknowledged; one for each item that a chunk carries."""

    def release(self, acks: Sequence[Tag], nacks: Sequence[Tag]) -> None:
        """Acknowledge and reject these deliveries, soon; a tag that is not open changes nothing. Raises nothing."""


@dataclass(slots=True, eq=False)
class Delivery:
    """One delivery of a message; a consumer sets it as the message's attribute `delivery`.

    `stamp` is None for a message of a producer without Callboard, or one that can't be decoded. `mates` are the other
    messages of its batch: they begin with this one, or after it when this one does not begin.
    """

    acks: Acks
    tag: Tag
    stamp: Stamp | None
    redelivered: bool = False
    was_dead: bool = False  # it was a dead letter that somebody moved back to its queue
    mates: list[MessageProxy] = field(default_factory=list)
    attempt: "Attempt | None" = None  # until it ends
    seen: bool = False  # `before_process_message` ran
    dropped: bool = False  # it must not run; the hooks of other middleware are not called
    deferred: bool = False  # Dramatiq's ack is ignored: it is acknowledged after a commit, or never
    aside: bool = False  # a side thread acknowledges or defers it; Dramatiq's ack is ignored
    stale: bool = False  # its connection is closed: the broker delivers it again
    waiting: "dict[Tag, Delivery] | None" = None  # the deliveries of its connection that have not begun; None: not kept
    span: tuple[Any, Any] | None = None  # the OpenTelemetry span of its attempt, and the token that ends its context

    @property
    def came_before(self) -> bool:
        """Whether its message was delivered before, so its item may be running or may have run."""
        return self.redelivered or self.was_dead

    @property
    def carried(self) -> bool:
        """Whether it is one item of a delivery that carries many: such a delivery is acknowledged, never rejected."""
        return isinstance(self.tag, tuple)

    def begin(self) -> bool:
        """Return whether it may begin. It may not, and is deferred, if it was taken off `waiting` to be published
        again. Thread-safe.
        """
        if self.waiting is not None and self.waiting.pop(self.tag, None) is None:
            self.deferred = True
            return False
        self.waiting = None
        return True

    def finish(self, *, failed: bool) -> None:
        """Acknowledge it, or reject it if it `failed`; do nothing if its acknowledgement is deferred."""
        if not self.deferred and not self.aside:
            release([(self, failed)])


def delivery_of(message: Any) -> Delivery | None:
    """Return the delivery of a message; None if no consumer delivered it.

    An app's own broker may run an actor in the sending thread, as test brokers do; such a run is not recorded.
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
