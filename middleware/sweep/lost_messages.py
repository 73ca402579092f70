"""The search for messages that are lost: published, held by nobody, and no longer in their queue.

A message that merely waits must not be sent again: it would double the queue, and its first copy runs unasked. So two
things have to be known of it. Its queue can't hold it any more: it is empty, or it has given out what came later
(RabbitMQ keeps the order). And no live worker holds it: twice since then each of them has said what it holds.
"""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from callboard.middleware.publish.transport import Transport, Unreachable
from callboard.sql.pool import Conn
from callboard.sql.rows import OpenJob, PublishMark
from callboard.sql.writes import sweep

log = logging.getLogger("callboard.sweep")

#: Items looked at in one stretch: of a job that moves, and of one that stands still.
STRETCH = 100_000
STRETCH_STILL = 1_000_000
#: Items looked at in one search, suspects found in one stretch, and suspects known at a time of one queue: what waits
#: long in one must not keep what is lost in another from being found.
BUDGET = 2_000_000
FOUND = 20_000
MANY = 50_000
#: Seconds without a change after which a job stands still.
QUIET = 5.0
#: Seconds by which a heartbeat's news may be older than the heartbeat.
STALE = 0.5
#: Heartbeats of every worker that a lost message has to be missing in: what one frozen for a while has not even read
#: yet is not in its first.
BEATS = 2
#: Jobs that tell whether a queue has moved on.
MARKED = 50

#: Job, item, attempt.
Key = tuple[int, int, int]


@dataclass(slots=True)
class Suspect:
    """An item that nobody held, first in the search number `seen`. `missed`: when, by the monotonic clock, it was found
    to be no longer in its queue, or was last missing in everybody's heartbeat; `beats`: how often it was.
    """

    queue: str
    seen: int
    missed: float | None = None
    beats: int = 0


@dataclass(slots=True)
class LostMessageSearch:
    """See the module. `link` opens a way to ask the broker."""

    transport: Callable[[], Transport]
    _number: int = 0
    _suspects: dict[Key, Suspect] = field(default_factory=dict)
    _marks: dict[str, tuple[int, PublishMark]] = field(default_factory=dict)
    _reached: dict[tuple[int, int], int] = field(default_factory=dict)
    _last: int = 0

    def forget(self) -> None:
        """Somebody else may have searched meanwhile, and sent again what this one thinks is lost."""
        self._suspects.clear()
        self._marks.clear()

    def look(self, conn: Conn, holder: str) -> None:
        """One search; `holder` has the sweep's lease. What is lost is found in the third at the latest."""
        self._number += 1
        jobs = sweep.jobs_out(conn, QUIET)
        self._drop_all_but({out.job for out in jobs})
        self._send_again(conn, holder)
        self._suspect(conn, jobs)
        if self._suspects:
            self._ask(conn)

    def _drop_all_but(self, jobs: set[int]) -> None:
        self._suspects = {key: suspect for key, suspect in self._suspects.items() if key[0] in jobs}
        self._reached = {place: item for place, item in self._reached.items() if place[0] in jobs}

    # Who holds it ----------------------------------------------------------------------------------------------------

    def _send_again(self, conn: Conn, holder: str) -> None:
        """Of what is in no queue: send again what was missing in enough heartbeats."""
        missed = [suspect for suspect in self._suspects.values() if suspect.missed is not None]
        if not missed:
            return
        now = time.monotonic()
        heard = now - (sweep.oldest_beat(conn) or 0.0) - STALE
        for suspect in missed:
            if suspect.missed is not None and suspect.missed < heard:
                suspect.missed, suspect.beats = now, suspect.beats + 1
        due = [key for key, suspect in self._suspects.items() if suspect.beats >= BEATS]
        for job, items in _by_job(due):
            count = sweep.republish(conn, job, items, holder)
            if count:
                log.warning("job %d: %d items had lost their messages; they are sent again", job, count)
        for key in due:
            del self._suspects[key]  # the others are held, or have ended

    # What nobody holds -----------------------------------------------------------------------------------------------

    def _suspect(self, conn: Conn, jobs: Sequence[OpenJob]) -> None:
        """Look at some of what is out, of each job in its turn: no search takes longer for a job of ten million."""
        budget = BUDGET
        known = Counter(suspect.queue for suspect in self._suspects.values())
        for out in sorted(jobs, key=lambda out: (out.job <= self._last, out.job)):
            if budget <= 0:
                return
            self._last = out.job
            for low, high in self._stretches(out):
                budget -= high - low
                for item, attempt, queue in sweep.unheld_items(conn, out.job, FOUND, low=low, high=high):
                    key = (out.job, item, attempt)
                    if key not in self._suspects and known[queue] < MANY:
                        self._suspects[key] = Suspect(queue, self._number)
                        known[queue] += 1

    def _stretches(self, out: OpenJob) -> Iterator[tuple[int, int]]:
        """The end of what is published, where most of a loss lies, and one stretch more, further down each time."""
        size = STRETCH_STILL if out.still else STRETCH
        for start, end in ((0, out.watermark), (out.bulk_end, out.total)):
            top = max(start, end - size)
            if top < end:
                yield top, end
            if top > start:
                reached = self._reached.get((out.job, start), start)
                high = top if reached <= start else min(reached, top)
                low = self._reached[out.job, start] = max(start, high - size)
                yield low, high

    # What no queue holds ---------------------------------------------------------------------------------------------

    def _ask(self, conn: Conn) -> None:
        """Find the suspects that their queues can't hold any more."""
        queues = {suspect.queue for suspect in self._suspects.values() if suspect.missed is None}
        if not queues:
            return
        transport = self.transport()
        try:
            given = {queue: self._given_out(conn, transport, queue) for queue in queues}
        except Unreachable as error:
            log.debug("no search for lost messages: %s", error)
            return
        finally:
            transport.close()
        now = time.monotonic()
        for suspect in self._suspects.values():
            if suspect.missed is None and suspect.seen <= given.get(suspect.queue, 0):
                suspect.missed = now

    def _given_out(self, conn: Conn, transport: Transport, queue: str) -> int:
        """The search before which everything came into the queue that it has given out."""
        depth = transport.depth(queue)
        if depth == 0:
            self._marks.pop(queue, None)
            return self._number
        if depth is None or not transport.in_order:
            return 0
        number, mark = self._marks.get(queue, (0, None))
        if mark is not None and not sweep.overtaken(conn, queue, mark):
            return 0
        if fresh := sweep.mark_jobs(conn, MARKED):
            self._marks[queue] = (self._number, fresh)
        return number


def _by_job(keys: Iterable[Key]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    found: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for job, item, attempt in keys:
        found[job].append((item, attempt))
    yield from sorted(found.items())
