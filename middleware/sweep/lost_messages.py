"""Finds items whose message was lost, published and neither held by a worker nor in their queue, and republishes them.

A message that only waits must not be sent again: its first copy would run without a claim. So an item is republished
when both of these are certain. Its queue no longer contains the message, because the queue is empty or has delivered
messages that were published later (RabbitMQ keeps the order), and the message has not come back since to be published
again, behind these. And no live worker holds it: since then each has reported twice what it holds.
"""

import logging
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from operator import itemgetter

from psycopg.errors import LockNotAvailable

from callboard.middleware.publish.transport import Transport, Unreachable
from callboard.sql.pool import Conn
from callboard.sql.rows import OpenJob
from callboard.sql.writes import sweep

log = logging.getLogger("callboard.sweep")

#: Items per searched range: for a job that changed lately, and for a job that stands still.
RANGE_ITEMS, STILL_RANGE_ITEMS = 100_000, 1_000_000
#: The most open jobs, and items of theirs, that one search looks at.
SEARCH_JOBS, SEARCH_ITEMS = 120, 2_000_000
#: The most suspects that one range adds, and that a queue has at a time, so that none is crowded out by another.
RANGE_SUSPECTS, QUEUE_SUSPECTS = 20_000, 50_000
#: Seconds without a change after which a job stands still.
STILL_SECONDS = 5.0
#: Seconds by which what a heartbeat reports may be older than the heartbeat.
REPORT_AGE_SECONDS = 0.5
#: A message counts as lost after it was missing from this many heartbeats of every worker. Two, since the first
#: heartbeat of a worker that was frozen omits the messages that it has not read yet.
HEARTBEATS = 2
#: Jobs in the mark by which a queue is seen to have moved on.
MARK_JOBS = 50

#: Job, item, attempt.
Key = tuple[int, int, int]


@dataclass(slots=True)
class Missing:
    """A suspect that its queue does not contain.

    `since`: the monotonic time when that was found, later when it was last missing from every worker's heartbeat;
    `heartbeats`: how often it was.
    """

    since: float
    heartbeats: int = 0


@dataclass(slots=True)
class Suspects:
    """Items that no worker held when they were searched for. However many there are, a search reads only those that it
    changes.

    `queued` are those that may be in their queue, with the number of the search that found each, the first ones first.
    """

    queued: dict[str, dict[Key, int]] = field(default_factory=lambda: defaultdict(dict))
    missing: dict[Key, Missing] = field(default_factory=dict)
    #: `OpenJob.given_back` of each job, from before any of its suspects was found.
    given_back: dict[int, int] = field(default_factory=dict)
    _jobs: dict[int, dict[Key, str]] = field(default_factory=lambda: defaultdict(dict))
    _of_queues: Counter[str] = field(default_factory=Counter)

    def add(self, found: Iterable[tuple[int, int, int, str]], search: int) -> None:
        """Suspect items, (job, item, attempt, queue), but none twice, and of a queue only as many as it may have."""
        for job, item, attempt, queue in found:
            key = job, item, attempt
            if key not in self._jobs[job] and self._of_queues[queue] < QUEUE_SUSPECTS:
                self.queued[queue][key] = search
                self._jobs[job][key] = queue
                self._of_queues[queue] += 1

    def pass_queue(self, queue: str, search: int) -> None:
        """The queue contains none that this search found, or an earlier one."""
        found, now = self.queued[queue], time.monotonic()
        for key in list(takewhile(lambda key: found[key] <= search, found)):
            del found[key]
            self.missing[key] = Missing(now)

    def drop(self, key: Key) -> None:
        """Suspect an item no more."""
        queue = self._jobs[key[0]].pop(key)
        self._of_queues[queue] -= 1
        self.queued[queue].pop(key, None)
        self.missing.pop(key, None)

    def drop_jobs(self, searched: range, in_flight: set[int]) -> None:
        """Suspect no item any more of those of the `searched` jobs of which nothing is in flight."""
        for job in [job for job in self._jobs if job in searched and job not in in_flight]:
            self._drop_job(job)
        self.given_back = {k: n for k, n in self.given_back.items() if k in in_flight or k not in searched}

    def note_given_back(self, job: int, given_back: int) -> None:
        """If messages of a job came back, suspect none of its items any more: the next search may suspect them anew."""
        if self.given_back.get(job) != given_back:
            self._drop_job(job)
            self.given_back[job] = given_back

    def _drop_job(self, job: int) -> None:
        for key in list(self._jobs[job]):
            self.drop(key)
        del self._jobs[job]


@dataclass(slots=True)
class LostMessageSearch:
    """See the module. `transport` opens a connection to ask the broker how long queues are. `more`: the last search was
    short and left jobs for the next, which may follow at once.
    """

    transport: Callable[[], Transport]
    more: bool = False
    _number: int = 0  # of this search
    _suspects: Suspects = field(default_factory=Suspects)
    _marks: dict[str, tuple[int, sweep.PublishMark]] = field(default_factory=dict)  # by queue, with their search
    _reached: dict[tuple[int, int], int] = field(default_factory=dict)  # by job and start of what is searched
    _last_job: int = 0  # after which the next search begins

    def forget(self) -> None:
        """Drop all suspects: another process may have searched meanwhile, and republished them."""
        self._suspects = Suspects()
        self._marks.clear()

    def run(self, conn: Conn, holder: str) -> None:
        """Search once, as `holder` of the sweep's lease. The third search of a job at the latest finds what is lost."""
        self._number += 1
        after, found = (self._last_job, sweep.open_jobs(conn, STILL_SECONDS, after=self._last_job, limit=SEARCH_JOBS))
        self.more = len(found) == SEARCH_JOBS
        self._last_job = found[-1].job if self.more else 0
        jobs = {out.job for out in found if out.in_flight}
        gone = range(after + 1, self._last_job + 1) if self._last_job else range(after + 1, sys.maxsize)
        self._suspects.drop_jobs(gone, jobs)
        for out in found:
            if out.in_flight:
                self._suspects.note_given_back(out.job, out.given_back)
        self._reached = {k: item for k, item in self._reached.items() if k[0] in jobs or k[0] not in gone}
        self._republish(conn, holder)
        self._add_suspects(conn, [out for out in found if out.in_flight])
        self._check_queues(conn)

    def _republish(self, conn: Conn, holder: str) -> None:
        """Republish the suspects that are in no queue, and were missing from enough heartbeats."""
        if not self._suspects.missing:
            return
        now = time.monotonic()
        reported = now - (sweep.oldest_heartbeat_seconds(conn) or 0.0) - REPORT_AGE_SECONDS
        for missing in self._suspects.missing.values():
            if missing.since < reported:
                missing.since, missing.heartbeats = now, missing.heartbeats + 1
        due = sorted(key for key, one in self._suspects.missing.items() if one.heartbeats >= HEARTBEATS)
        for job, found in groupby(due, key=itemgetter(0)):
            keys = list(found)
            try:
                items = [(item, attempt) for _, item, attempt in keys]
                count = sweep.republish(conn, job, items, holder, self._suspects.given_back[job])
            except LockNotAvailable as error:  # the next search republishes those of this job
                log.warning("job %d: lost messages are not published again yet: %s", job, error)
                continue
            for key in keys:
                self._suspects.drop(key)  # those that were not republished are held, or have ended
            if count:
                log.warning(
                    "job %d: %d items had lost their messages; they are published again. If this repeats, see whether "
                    "a policy of RabbitMQ drops messages of its queue (max-length, message-ttl)",
                    job, count,
                )  # fmt: skip

    def _add_suspects(self, conn: Conn, open_jobs: Sequence[OpenJob]) -> None:
        """Look for items that no worker holds, `SEARCH_ITEMS` at most; the next search goes on where this one ends."""
        left, ranges = SEARCH_ITEMS, list[tuple[int, int, int]]()
        for out in open_jobs:
            for low, high in self._ranges(out):
                ranges.append((out.job, low, high))
                left -= high - low
            if left <= 0:
                self.more = False
                self._last_job = out.job if out is not open_jobs[-1] else self._last_job
                break
        if ranges:
            self._suspects.add(sweep.unheld_items(conn, ranges, RANGE_SUSPECTS), self._number)

    def _ranges(self, out: OpenJob) -> Iterator[tuple[int, int]]:
        """Yield the newest published range, where most losses lie, and one older range, further down in each search."""
        size = STILL_RANGE_ITEMS if out.quiet else RANGE_ITEMS
        for start, end in ((0, out.watermark), (out.bulk_end, out.total)):
            top = max(start, end - size)
            if top < end:
                yield top, end
            if top > start:
                reached = self._reached.get((out.job, start), start)
                high = top if reached <= start else min(reached, top)
                low = self._reached[out.job, start] = max(start, high - size)
                yield low, high

    def _check_queues(self, conn: Conn) -> None:
        """Find the suspects that their queues no longer contain; do nothing if the broker does not answer."""
        queues = [queue for queue, found in self._suspects.queued.items() if found]
        if not queues:
            return
        transport = self.transport()
        try:
            delivered = {queue: self._delivered(conn, transport, queue) for queue in queues}
        except Unreachable as error:
            log.debug("no search for lost messages: %s", error)
            return
        finally:
            transport.close()
        for queue, search in delivered.items():
            self._suspects.pass_queue(queue, search)

    def _delivered(self, conn: Conn, transport: Transport, queue: str) -> int:
        """Return the number of the latest search whose earlier messages have all left the queue; 0 if unknown."""
        depth = transport.depth(queue)
        if depth == 0:
            self._marks.pop(queue, None)
            return self._number
        if depth is None or not transport.in_order:
            return 0
        number, mark = self._marks.get(queue, (0, None))
        if mark is not None and not sweep.passed_mark(conn, queue, mark):
            return 0
        if new_mark := sweep.publish_mark(conn, MARK_JOBS):
            self._marks[queue] = (self._number, new_mark)
        return number
