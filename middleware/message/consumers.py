"""The state that the consumers of one process share."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from callboard.middleware.message.delivery import Acks


class Consumers:
    """The connections with open deliveries, and the queues from which no messages come. Any thread may read it."""

    def __init__(self) -> None:
        self.acks: set[Acks] = set()
        self.cut_off: dict[str, str] = {}  # queue -> why no messages come from it

    def open_deliveries(self) -> int:
        """Return how many messages were delivered and are not acknowledged."""
        return sum(acks.held for acks in list(self.acks))

    def prefetched(self) -> list[tuple[int, int]]:
        """Return (job, item) of each of them that has a stamp."""
        stamps = (delivery.stamp for acks in list(self.acks) for delivery in acks.deliveries())
        return [(stamp.job, stamp.item) for stamp in stamps if stamp]

    def why_cut_off(self) -> str | None:
        """Return why no messages come from a queue, or None when they come from all."""
        return next(iter(list(self.cut_off.values())), None)
