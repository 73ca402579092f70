"""How many items lie in each queue of the broker: enough to keep its workers busy, and no more."""

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from callboard.middleware.publish.transport import Transport

#: The fewest and the most items that are kept in a queue; in between, about as many as its workers take in two rounds.
MIN_BACKLOG_ITEMS = 50
MAX_BACKLOG_ITEMS = 20_000
#: Seconds within which the workers must have nearly emptied a queue for its target to grow; twice as long as the last
#: batch took are added, since a busy machine does all of this slowly.
EMPTIED_SECONDS = 0.25
#: A target that is this many times as old is forgotten: the next items may take longer than those it was made for.
IDLE_FACTOR = 4
#: By how much a target is divided before the first items of a job; and the least that it is then: a process that only
#: submits publishes no more of a job.
NEW_JOB_DIVISOR, NEW_JOB_ITEMS = 8, 2 * MIN_BACKLOG_ITEMS
#: Seconds for which a queue that was found full counts as full.
FULL_SECONDS = 0.1


@dataclass(slots=True)
class QueueBacklog:
    """The target backlog of one queue, in items: small, so that jobs take turns, and large enough for its workers.

    The target doubles when the workers have nearly emptied the queue soon after it was filled. While they leave it
    full, it halves within a second. It begins anew when nothing was published for a while, and is lowered before the
    first items of a job: they may take long, and another tenant's items must not wait behind many of them.
    """

    target_items: int = MIN_BACKLOG_ITEMS
    full_until: float = 0.0  # monotonic; 0: the queue has room, as far as is known
    refused_until: float = 0.0  # monotonic; the broker refuses its messages
    items_per_message: float = 1.0  # average of what was published last
    published_at: float = math.inf  # monotonic; not yet: the first batch may be twice the smallest target
    looked_at: float = math.inf  # monotonic; when the broker was last asked
    batch_seconds: float = 0.0  # from then until something was published
    filled_items: int = MIN_BACKLOG_ITEMS  # that lay in it when something was last published

    def count_published(self, items: int, messages: int, now: float) -> None:
        """Count `items` that were published in `messages` until `now`, a monotonic time."""
        self.items_per_message = (self.items_per_message + items / messages) / 2
        self.filled_items += items
        self.batch_seconds = max(now - self.looked_at, 0.0)
        self.published_at = now

    def is_full(self, ready: int) -> bool:
        """Return whether a queue with `ready` messages has too little room for a batch."""
        return self.target_items - int(ready * self.items_per_message) <= self.target_items // 4

    def room(self, ready: int, now: float, *, new_job: bool = False) -> int:
        """Adapt the target to the `ready` messages that the workers left; return how many items to add. `new_job`: they
        are the first of their job.

        Zero marks the queue as full for `FULL_SECONDS` from `now`, a monotonic time.
        """
        items, filled = int(ready * self.items_per_message), self.filled_items
        soon = EMPTIED_SECONDS + 2 * self.batch_seconds
        if now - self.published_at > IDLE_FACTOR * soon:
            self.target_items = MIN_BACKLOG_ITEMS
        if new_job and items < self.target_items // 4:
            self.target_items = max(self.target_items // NEW_JOB_DIVISOR, NEW_JOB_ITEMS)
        elif items > self.target_items * 3 // 4:
            self.target_items = max(self.target_items * 31 // 32, MIN_BACKLOG_ITEMS)
        elif items < self.target_items // 4 and filled >= self.target_items * 3 // 4 and now - self.published_at < soon:
            self.target_items = min(self.target_items * 2, MAX_BACKLOG_ITEMS)
        self.looked_at, self.filled_items = now, items
        self.full_until = now + FULL_SECONDS if self.is_full(ready) else 0.0
        return 0 if self.full_until else self.target_items - items


@dataclass(slots=True)
class QueueBacklogs:
    """The backlogs of all queues that this process publishes to.

    `fixed_items` is how many items may lie in each queue; None adapts that to the queue's workers.
    """

    transport: Transport
    fixed_items: int | None = None
    _backlogs: dict[str, QueueBacklog] = field(default_factory=dict)

    def full_queues(self) -> list[str]:
        """Return the queues that were full a moment ago, or refused."""
        now = time.monotonic()
        return [q for q, backlog in self._backlogs.items() if max(backlog.full_until, backlog.refused_until) > now]

    def poll_full_queues(self) -> None:
        """Ask the broker which of the queues that were full still are. Raises nothing."""
        for queue in self.queues_to_poll():
            self.has_room(queue)

    def refuse(self, queue: str, seconds: float) -> None:
        """Count a queue as full for so long, since the broker refuses its messages."""
        self._backlogs[queue].refused_until = time.monotonic() + seconds

    def queues_to_poll(self) -> list[str]:
        """Return the queues that were full when they were last asked.

        The more often a queue is asked, the smaller its backlog may be. Empty when the backlog is fixed.
        """
        if self.fixed_items is not None:
            return []
        return [queue for queue, backlog in self._backlogs.items() if backlog.full_until]

    def room(self, queue: str, *, new_job: bool = False) -> int:
        """Ask the broker, adapt the target, and return how many items to add; `new_job`: the first of their job.
        Raises Unreachable.
        """
        ready, now = self.transport.depth(queue) or 0, time.monotonic()
        backlog = self._backlogs.setdefault(queue, QueueBacklog())
        if self.fixed_items is None:
            return backlog.room(ready, now, new_job=new_job)
        room = self.fixed_items - int(ready * backlog.items_per_message)
        if room <= 0:
            backlog.full_until = now + FULL_SECONDS
        return max(0, room)

    def count_published(self, queue: str, items: int, messages: int) -> None:
        """Count `items` that were published to a queue in `messages`."""
        self._backlogs.setdefault(queue, QueueBacklog()).count_published(items, messages, time.monotonic())

    def count_messages(self, queues: Iterable[str]) -> None:
        """Count messages of one item each that were published to these queues."""
        for queue, count in Counter(queues).items():
            self.count_published(queue, count, count)

    def has_room(self, queue: str) -> bool:
        """Ask the broker whether a queue that was full has room; return True when it can't be asked.

        Raises nothing: it runs between two rounds, and the next round reports what is wrong with the connection.
        """
        backlog = self._backlogs[queue]
        try:
            ready = self.transport.depth(queue) or 0
        except Exception:  # noqa: BLE001 — pika raises errors of many types while a connection breaks
            ready = 0
        if backlog.is_full(ready):
            return backlog.room(ready, time.monotonic()) > 0
        backlog.full_until = 0.0
        return True
