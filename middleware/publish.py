"""The publisher: puts what is stored onto the broker, has it confirmed, and only then says that it is published.

Bulk items by a watermark that only moves forward, everything else from the outbox. One thread a process; any process
may take any job's next batch, with a claim that lapses by itself.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware import lanes
from callboard.middleware.complaint import complaints
from callboard.middleware.link import Link, Unreachable
from callboard.sql import writes
from callboard.sql.lanes import TakenOver
from callboard.sql.pool import Conn, Pool
from callboard.sql.rows import BulkClaim, Outgoing

log = logging.getLogger("callboard.publisher")
_complain = complaints(log, "publishing is held up, trying on; nothing is lost: %s")

#: Seconds between two looks for work when there was none.
PERIOD = 0.20
#: Seconds between two looks at a queue that was full: the less its workers empty meanwhile, the less need lie in it,
#: and all of it is before a job that comes now.
LOOK = 0.03
#: Outbox messages claimed at a time.
OUTBOX_BATCH = 500
#: Seconds for which messages wait that the broker refused: then they are behind all others that are due.
REFUSED = 1.0
#: Bytes of arguments that one message carries of many items.
CHUNK_BYTES = 1_048_576
#: Items that lie in a queue at first, and at the most; in between as many as its workers empty in two looks or so.
SHALLOW = 50
DEEP = 20_000


@dataclass(slots=True)
class Level:
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
        """How many items to add to a queue with `depth` ready messages; 0 makes it full for a period."""
        items = int(depth * self.carried)
        if items < self.wanted // 4:
            self.wanted = min(self.wanted * 2, DEEP)
        elif items > self.wanted * 3 // 4:
            self.wanted = max(self.wanted * 31 // 32, SHALLOW)
        self.full_until = now + PERIOD / 2 if self.full(depth) else 0.0
        return 0 if self.full_until else self.wanted - items


@dataclass(slots=True)
class Publisher:
    """See the module. `link` is opened by the publisher's own thread.

    `depth` fixes how many messages may lie in a queue (``CALLBOARD_QUEUE_DEPTH``); None: by what its workers do.
    """

    pool: Pool
    link: Link
    depth: int | None = None
    _handed: list[Outgoing] = field(default_factory=list)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _levels: dict[str, Level] = field(default_factory=dict)
    _thread: threading.Thread | None = None
    _closing: bool = False
    _looking: bool = False
    _nudged: bool = False
    _jobs: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Look for work from now on: what a worker does. Without it, only what is handed over is published."""
        self._looking = True
        with self._wake:
            self._ensure_thread()

    def hand(self, out: Outgoing) -> None:
        """Publish a message that this process just stored, and holds the claim of."""
        with self._wake:
            self._handed.append(out)
            self._ensure_thread()
            self._wake.notify()

    def begin(self, job: int) -> None:
        """Publish a job's first items at once, as far as there is room."""
        with self._wake:
            self._jobs.append(job)
            self._ensure_thread()
            self._wake.notify()

    def nudge(self) -> None:
        """Look for work now: what ended left room for more."""
        with self._wake:
            self._nudged = True
            self._wake.notify()

    @property
    def trouble(self) -> str | None:
        """What keeps this process from publishing; None: nothing that is known."""
        return self.link.trouble

    def close(self, timeout: float) -> bool:
        """Publish what was handed over and end; False when that took longer than `timeout` seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # The thread ------------------------------------------------------------------------------------------------------

    def _ensure_thread(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="callboard-publisher", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                # Before anything is claimed: while nothing can be published, nothing is.
                self.link.serve(mend=self._looking and not self._closing)
                worked = self._turn(*self._next())
            except (Unreachable, psycopg.Error, PoolTimeout) as error:
                _complain(error)
                worked = False
                if not self._closing:
                    time.sleep(PERIOD)
            except Exception:
                log.exception("the publisher met an error it doesn't know; it goes on")
                worked = False
                time.sleep(PERIOD)
            if self._closing and not self._handed and not self._jobs:
                self.link.close()
                return
            if not worked:
                self._rest()

    def _next(self) -> tuple[list[Outgoing], list[int]]:
        with self._wake:
            handed, self._handed = self._handed[:OUTBOX_BATCH], self._handed[OUTBOX_BATCH:]
            jobs, self._jobs = self._jobs, []
        return handed, jobs

    def _rest(self) -> None:
        """Wait for something to do: that somebody says so, that a full queue has room again, or a period at most."""
        end = time.monotonic() + (PERIOD if self._looking else 5.0)
        while (left := end - time.monotonic()) > 0:
            full = self._full() if self._looking and self.depth is None else []
            if self._woken(min(left, LOOK) if full else left) or any(map(self._emptied, full)):
                return

    def _full(self) -> list[str]:
        return [queue for queue, level in self._levels.items() if level.full_until]

    def _woken(self, seconds: float) -> bool:
        with self._wake:
            if not self._handed and not self._jobs and not self._closing and not self._nudged:
                self._wake.wait(seconds)
            woken = bool(self._handed or self._jobs or self._closing or self._nudged)
            self._nudged = False
        return woken

    def _emptied(self, queue: str) -> bool:
        """Whether a full queue has room again; when nobody can say, the next turn finds out."""
        level = self._levels[queue]
        try:
            depth = self.link.depth(queue) or 0
        except Unreachable:
            depth = 0
        if level.full(depth):
            return level.room(depth, time.monotonic()) > 0
        level.full_until = 0.0
        return True

    def _turn(self, handed: list[Outgoing], jobs: list[int]) -> bool:
        """One round of everything there is to publish; True when there was something."""
        worked = bool(handed) and bool(self._send_outbox(handed))
        with self.pool.connection() as conn:
            for job in jobs:
                worked |= bool(self._bulk(conn, job, []))
            if self._looking and not self._closing:
                due = writes.claim_outbox(conn, OUTBOX_BATCH)
                worked |= bool(due) and bool(self._send_outbox(due, conn))
                worked |= self._next_bulk(conn)
        return worked

    def _next_bulk(self, conn: Conn) -> bool:
        """The next job in turn whose queue has room; one that is full must not hold up the jobs of others."""
        passed: list[int] = []
        while (sent := self._bulk(conn, None, passed)) is False:
            continue
        return bool(sent)

    # The outbox ------------------------------------------------------------------------------------------------------

    def _send_outbox(self, batch: Sequence[Outgoing], conn: Conn | None = None) -> int:
        """Publish messages whose outbox rows are claimed, and settle them; how many the broker took."""
        if conn is None:
            with self.pool.connection() as own:
                return self._send_outbox(batch, own)
        try:
            confirmed, failure = self.link.publish(batch), None
        except Unreachable as error:
            confirmed, failure = error.confirmed, error
        confirmed += [False] * (len(batch) - len(confirmed))
        sent = [out for out, done in zip(batch, confirmed, strict=True) if done]
        unsent = [out for out, done in zip(batch, confirmed, strict=True) if not done]
        if sent:
            writes.settle_outbox(conn, sent)
        if unsent:
            writes.release_outbox(conn, unsent, pause=0.0 if failure else REFUSED)
        if failure is not None:
            raise failure
        if unsent:
            _complain(_refused(unsent[0].queue))
        return len(sent)

    # The bulk range --------------------------------------------------------------------------------------------------

    def _bulk(self, conn: Conn, job: int | None, passed: list[int]) -> bool | None:
        """Claim a job (the next in turn, or this one), publish as much of it as there is room for, give it back.

        False when its queue is full, and it is `passed` over then; None when there is no such job.
        """
        now = time.monotonic()
        full = [queue for queue, level in self._levels.items() if level.full_until > now]
        claim = writes.claim_bulk(conn, full=full, passed=passed, job=job)
        if claim is None:
            return None
        try:
            room = self._room(claim.queue)
            if claim.allowed is not None:
                room = min(room, claim.allowed)
            if claim.lane_by is not None:
                return self._by_lane(conn, claim, room, passed)
            again = self._redo(conn, claim, room)
            reached = self._range(conn, claim, room - again)
        except Unreachable:
            writes.publish_bulk(conn, claim, watermark=claim.watermark, published=0, keep=False)
            raise
        if reached == claim.watermark:
            writes.publish_bulk(conn, claim, watermark=reached, published=0, keep=False, unserved=not again)
        if again or reached > claim.watermark:
            return True
        passed.append(claim.job)
        return False

    def _by_lane(self, conn: Conn, claim: BulkClaim, room: int, passed: list[int]) -> bool:
        """Publish what there is room for in the lanes of a job, and give it back; see `_bulk`."""
        sent = 0
        try:
            for batch in lanes.batches(conn, claim, room):
                taken = self._send_outbox(batch, conn)
                sent += taken
                if taken < len(batch):
                    break
        except TakenOver:
            log.debug("job %d was paused, stopped, or taken over", claim.job)
        writes.publish_bulk(
            conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=not sent
        )
        if not sent:
            passed.append(claim.job)
        return bool(sent)

    def _redo(self, conn: Conn, claim: BulkClaim, room: int) -> int:
        """Publish messages that wait in the outbox for the job's turn; how many the broker took."""
        batch = (
            writes.claim_redo(conn, claim, min(room, writes.WINDOW))
            if (claim.redo or claim.limited) and room
            else []
        )
        return self._send_outbox(batch, conn) if batch else 0

    def _range(self, conn: Conn, claim: BulkClaim, room: int) -> int:
        """Publish from the bulk range as much as there is room for; returns the watermark that was reached."""
        watermark = claim.watermark
        end = min(claim.total, watermark + min(room, 2 * writes.WINDOW))
        while watermark < end:
            stop = min(end, watermark + writes.WINDOW)
            if not self._stretch(conn, claim, watermark, stop, keep=stop < end):
                return stop
            watermark = stop
        return watermark

    def _stretch(self, conn: Conn, claim: BulkClaim, start: int, stop: int, *, keep: bool) -> bool:
        """Publish the bulk items of one stretch and move the watermark; False when the claim was taken over."""
        items = writes.bulk_items(conn, claim, start, stop)
        batch = bundled(items, claim.chunk if self.link.carries else 1)
        try:
            confirmed = self.link.publish(batch)
        except Unreachable as error:
            self._salvage(conn, claim, batch, error.confirmed, stop)
            raise
        if not all(confirmed):
            self._salvage(conn, claim, batch, confirmed, stop)
            raise _refused(claim.queue)
        if batch:
            self._levels[claim.queue].note(len(items), len(batch))
        return writes.publish_bulk(conn, claim, watermark=stop, published=len(items), keep=keep)

    @staticmethod
    def _salvage(
        conn: Conn, claim: BulkClaim, batch: Sequence[Outgoing], confirmed: Sequence[bool], stop: int
    ) -> None:
        """Count what is confirmed without a gap; what lies beyond may be out, so it is suspect."""
        sure = next((n for n, done in enumerate(confirmed) if not done), len(confirmed))
        watermark = batch[sure].item if sure < len(batch) else stop
        published = sum(1 + len(out.more) for out in batch[:sure])
        writes.publish_bulk(
            conn, claim, watermark=watermark, published=published, suspect_below=stop, keep=False
        )

    def _room(self, queue: str) -> int:
        depth, now = self.link.depth(queue) or 0, time.monotonic()
        level = self._levels.setdefault(queue, Level())
        if self.depth is None:
            return level.room(depth, now)
        room = self.depth - int(depth * level.carried)
        if room <= 0:
            level.full_until = now + PERIOD / 2
        return max(0, room)


def _refused(queue: str) -> Unreachable:
    return Unreachable(f"RabbitMQ refused messages for the queue {queue!r}")


def bundled(items: Sequence[Outgoing], chunk: int) -> list[Outgoing]:
    """Runs of at most `chunk` items as one message each. What has options of its own or ran before goes by itself."""
    if chunk == 1:
        return list(items)
    runs: list[list[Outgoing]] = []
    size = 0
    for out in items:
        plain = out.attempt == 1 and out.options is None
        size += len(out.args)
        if not runs or not plain or not _open(runs[-1], chunk, out) or size > CHUNK_BYTES:
            runs.append([])
            size = len(out.args)
        runs[-1].append(out)
    return [replace(first, more=tuple(more)) if more else first for first, *more in runs]


def _open(run: Sequence[Outgoing], chunk: int, out: Outgoing) -> bool:
    first = run[0]
    return len(run) < chunk and first.attempt == 1 and first.options is None and first.suspect == out.suspect


def fixed_depth() -> int | None:
    """``CALLBOARD_QUEUE_DEPTH`` as a number, or None."""
    value = os.environ.get("CALLBOARD_QUEUE_DEPTH")
    return int(value) if value else None
