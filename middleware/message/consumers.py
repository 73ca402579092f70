"""The state that the consumers of one process share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callboard.middleware.message.delivery import Acks


class Consumers:
    """The connections with open deliveries, and the queues that deliver no messages. Any thread may read it."""

    def __init__(self) -> None:
        self.acks: set[Acks] = set()
        self.cut_off: dict[str, str] = {}  # queue -> why it delivers no messages

    def open_deliveries(self) -> int:
        """Return how many messages are delivered and not yet acknowledged."""
        return sum(acks.held for acks in list(self.acks))

    def prefetched(self) -> list[tuple[int, int]]:
        """Return (job, item) of each of these messages that has a stamp."""
        stamps = (delivery.stamp for acks in list(self.acks) for delivery in acks.deliveries())
        return [(stamp.job, stamp.item) for stamp in stamps if stamp]

    def why_cut_off(self) -> str | None:
        """Return why a queue delivers no messages, or None when all queues deliver."""
        return next(iter(list(self.cut_off.values())), None)
