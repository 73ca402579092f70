"""Limits how many items each queue of the broker holds: enough to keep its workers busy, and no more."""

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from callboard.middleware.publish.transport import Transport

#: The smallest and the largest target backlog of a queue, in items. In between, the target is about what its workers
#: take in two rounds.
MIN_BACKLOG_ITEMS = 50
MAX_BACKLOG_ITEMS = 20_000
#: A target grows if the workers nearly empty the queue within so many seconds, plus twice the duration of the last
#: batch: on a busy machine every step is slower.
EMPTIED_SECONDS = 0.25
#: A target that is so many times older than that is reset: the next items may take longer than those before.
IDLE_FACTOR = 4
#: A target is divided by the first number before the first items of a job, down to the second: a process that only
#: submits publishes no more of a job than that.
NEW_JOB_DIVISOR, NEW_JOB_ITEMS = 8, 2 * MIN_BACKLOG_ITEMS
#: Seconds for which a full queue counts as full without asking again.
FULL_SECONDS = 0.1


@dataclass(slots=True)
class QueueBacklog:
    """The target backlog of one queue, in items: small enough that jobs take turns, and large enough for its workers.

    The target doubles when the workers nearly empty the queue soon after it was filled. While they leave it full, the
    target halves within a second. It is reset when nothing was published for a while. It is lowered before the first
    items of a job: they may take long, and another tenant's items must not wait behind many of them.
    """

    target_items: int = MIN_BACKLOG_ITEMS
    full_until: float = 0.0  # monotonic; 0: the queue is not known to be full
    refused_until: float = 0.0  # monotonic; the broker refuses its messages
    items_per_message: float = 1.0  # average of what was published last
    published_at: float = math.inf  # monotonic; infinity: nothing yet, so the first batch may be twice the minimum
    looked_at: float = math.inf  # monotonic; when the broker was last asked
    batch_seconds: float = 0.0  # from `looked_at` until the batch was published
    filled_items: int = MIN_BACKLOG_ITEMS  # items in the queue after the last batch

    def count_published(self, items: int, messages: int, now: float) -> None:
        """Count `items` that were published in `messages` messages; `now` is monotonic."""
        self.items_per_message = (self.items_per_message + items / messages) / 2
        self.filled_items += items
        self.batch_seconds = max(now - self.looked_at, 0.0)
        self.published_at = now

    def is_full(self, ready: int) -> bool:
        """Return whether a queue with `ready` messages has too little room for a batch."""
        return self.target_items - int(ready * self.items_per_message) <= self.target_items // 4

    def room(self, ready: int, now: float, *, new_job: bool = False) -> int:
        """Adapt the target to the `ready` messages that are left in the queue; return how many items to add. `new_job`:
        they are the first of their job.

        If the result is 0, the queue counts as full for `FULL_SECONDS` from `now`, a monotonic time.
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

    `fixed_items`: the most items in each queue; None: the limit adapts to the queue's workers.
    """

    transport: Transport
    fixed_items: int | None = None
    _backlogs: dict[str, QueueBacklog] = field(default_factory=dict)

    def full_queues(self) -> list[str]:
        """Return the queues that count as full, or whose messages the broker refuses."""
        now = time.monotonic()
        return [q for q, backlog in self._backlogs.items() if max(backlog.full_until, backlog.refused_until) > now]

    def poll_full_queues(self) -> None:
        """Ask the broker which of the full queues are still full. Raises nothing."""
        for queue in self.queues_to_poll():
            self.has_room(queue)

    def refuse(self, queue: str, seconds: float) -> None:
        """Count a queue as full for `seconds`, because the broker refuses its messages."""
        self._backlogs[queue].refused_until = time.monotonic() + seconds

    def queues_to_poll(self) -> list[str]:
        """Return the queues that were full when they were last asked.

        The more often a queue is polled, the smaller its backlog may be. Empty when the backlog is fixed.
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
        """Count one message with one item for each of `queues`."""
        for queue, count in Counter(queues).items():
            self.count_published(queue, count, count)

    def has_room(self, queue: str) -> bool:
        """Ask the broker whether a queue that was full has room; return True when it can't be asked.

        Raises nothing: it runs between two rounds, and the next round reports an error of the connection.
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
