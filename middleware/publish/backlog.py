"""How much of each queue's work lies in RabbitMQ: enough to keep its workers busy, and no more."""

import logging
import os
import time
from dataclasses import dataclass, field

from callboard.middleware.publish.transport import Transport

log = logging.getLogger("callboard.publisher")

#: Items that lie in a queue at first, and at the most; in between as many as its workers empty in two looks or so.
SHALLOW = 50
DEEP = 20_000
#: Seconds for which a queue that was full is taken to be full.
FULL = 0.1


@dataclass(slots=True)
class QueueBacklog:
    """How much of a queue's work lies in RabbitMQ: enough to keep its workers busy, no more, so that jobs take turns.

    It doubles when the workers have nearly emptied the queue, and shrinks while they leave it full, to half in a
    second.
    """

    wanted: int = SHALLOW
    full_until: float = 0.0  # 0: it has room, as far as is known
    carried: float = 1.0  # items that a message of it carries, by what was published last

    def note(self, items: int, messages: int) -> None:
        """So many items were published, in so many messages."""
        self.carried = (self.carried + items / messages) / 2

    def full(self, depth: int) -> bool:
        """Whether a queue with `depth` ready messages has no room that is worth a turn."""
        return self.wanted - int(depth * self.carried) <= self.wanted // 4

    def room(self, depth: int, now: float) -> int:
        """How many items to add to a queue with `depth` ready messages; 0 makes it full for a while."""
        items = int(depth * self.carried)
        if items < self.wanted // 4:
            self.wanted = min(self.wanted * 2, DEEP)
        elif items > self.wanted * 3 // 4:
            self.wanted = max(self.wanted * 31 // 32, SHALLOW)
        self.full_until = now + FULL if self.full(depth) else 0.0
        return 0 if self.full_until else self.wanted - items


@dataclass(slots=True)
class QueueBacklogs:
    """The levels of all queues that this process publishes to. `depth` fixes how many items may lie in a queue; None:
    by what its workers do. What asks the broker raises Unreachable.
    """

    transport: Transport
    depth: int | None = None
    _backlogs: dict[str, QueueBacklog] = field(default_factory=dict)

    def full(self) -> list[str]:
        """The queues that were full a moment ago."""
        now = time.monotonic()
        return [queue for queue, backlog in self._backlogs.items() if backlog.full_until > now]

    def watched(self) -> list[str]:
        """The queues that were full when they were last looked at: the less their workers empty meanwhile, the less
        need lie in them, so they are looked at often.
        """
        return [
            queue for queue, backlog in self._backlogs.items() if backlog.full_until and self.depth is None
        ]

    def room(self, queue: str) -> int:
        """How many items to add to a queue."""
        depth, now = self.transport.depth(queue) or 0, time.monotonic()
        backlog = self._backlogs.setdefault(queue, QueueBacklog())
        if self.depth is None:
            return backlog.room(depth, now)
        room = self.depth - int(depth * backlog.carried)
        if room <= 0:
            backlog.full_until = now + FULL
        return max(0, room)

    def note(self, queue: str, items: int, messages: int) -> None:
        """So many items were published to a queue, in so many messages."""
        self._backlogs[queue].note(items, messages)

    def emptied(self, queue: str) -> bool:
        """Whether a queue that was full has room again; when nobody can say, the next turn finds out why. Raises
        nothing: between two turns nobody would take it.
        """
        backlog = self._backlogs[queue]
        try:
            depth = self.transport.depth(queue) or 0
        except Exception:  # noqa: BLE001 — whatever a connection that breaks just now says
            depth = 0
        if backlog.full(depth):
            return backlog.room(depth, time.monotonic()) > 0
        backlog.full_until = 0.0
        return True


def fixed_depth() -> int | None:
    """``CALLBOARD_QUEUE_DEPTH`` as a number, or None; also for what is none, for somebody has to publish."""
    value = os.environ.get("CALLBOARD_QUEUE_DEPTH")
    if not value or (value.isdecimal() and int(value) > 0):
        return int(value) if value else None
    log.error(
        "CALLBOARD_QUEUE_DEPTH must be a whole number from 1, not %r; until then queues are as deep as needed",
        value,
    )
    return None
