"""Publishes outbox rows and jobs' bulk items. Only what the broker confirms counts as published.

Bulk items are counted by their job's watermark, which only moves forward; an outbox row is deleted. A send under a
lease is the exception: it counts as published from when it is stored, and gets a row in the outbox if it can't be
published.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import groupby

import psycopg
from psycopg.errors import LockNotAvailable

from callboard.middleware.journal import metrics
from callboard.middleware.message.failure import describe
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.publish import lanes
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.chunking import chunk_size, into_chunks
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.publish.transport import Answer, Transport, Unpublishable, Unreachable
from callboard.sql import timings
from callboard.sql.errors import DATA_ERRORS
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Event, Outgoing, PublishClaim
from callboard.sql.writes import outcomes, publishing, sends
from callboard.sql.writes.lanes import ClaimTakenOver, renew_claim

log = logging.getLogger("callboard.publisher")
_log_refusal = OutageLog(log, "the broker refuses messages; they are tried again and nothing is lost: %s")

_log_kept = OutageLog(log, "messages wait for what keeps the row of their job; others are published meanwhile: %s")

#: Messages of the outbox that are claimed at a time.
OUTBOX_BATCH_MESSAGES = 500
#: Looks in a row at jobs in turn of which others have locked the rows, until the next poll, and seconds between two.
LOCKED_JOB_LOOKS, LOCKED_JOB_PAUSE_SECONDS = 10, 0.005
#: Seconds after which refused messages are published again, behind all others that are due.
REFUSED_PAUSE_SECONDS = 1.0
#: Seconds until a job is claimed again whose claim a trigger of the user's has refused; ten times as long as that took,
#: if it is more.
REFUSED_CLAIM_SECONDS = 5.0
#: Seconds between two looks at locked jobs of which messages are confirmed; until their rows are deleted, the claims of
#: these messages are renewed, so that nobody sends them again.
SETTLE_PAUSE_SECONDS = 1.0


class _QueueRefused(RuntimeError):
    """The broker takes no message for a queue at present; it may take messages for others."""


@dataclass(slots=True)
class Relay:
    """See the module. Each method raises Unreachable when the broker can't be reached, and gives its claim back.

    Claims are renewed while the broker is slow. A message that can't be published fails its item, and no other.
    """

    transport: Transport
    backlogs: QueueBacklogs
    leases: SendLeases
    _unsettled: list[Outgoing] = field(default_factory=list)  # confirmed, of jobs that another transaction has locked
    settle_at: float = math.inf  # monotonic: when to call `settle` for these
    _locked_looks: int = 0  # in a row
    _refused: dict[int, float] = field(default_factory=dict)  # jobs that are not claimed until then (monotonic)

    # The outbox ------------------------------------------------------------------------------------------------------

    def publish_outbox(self, conn: Conn, batch: Sequence[Outgoing], claim: PublishClaim | None = None) -> int:
        """Publish messages whose outbox rows are claimed, and settle the rows; return how many rows that were.

        `claim` is that of the job in whose turn they are published, if any; then raises _QueueRefused if none is taken.
        """
        sent, unsent, broken, failure = self._publish(conn, batch, claim)
        if sent:
            self._delete(conn, sent)
            self._count(sent)
        if broken:
            with transaction(conn):
                publishing.confirm_outbox(conn, [out for out, _ in broken])
                _fail(conn, broken)
        if unsent:
            with suppress(LockNotAvailable):  # their claims lapse
                publishing.release_outbox(conn, unsent, pause=0.0 if failure else REFUSED_PAUSE_SECONDS)
        if failure is not None:
            raise failure
        if unsent and claim is not None and not sent:
            raise self._refusal(unsent[0].queue)
        if unsent:
            _log_refusal(self._refusal(unsent[0].queue))
        return len(sent) + len(broken)

    def _publish(
        self, conn: Conn, batch: Sequence[Outgoing], claim: PublishClaim | None = None
    ) -> tuple[list[Outgoing], list[Outgoing], list[tuple[Outgoing, Unpublishable]], Unreachable | None]:
        """Publish messages of the outbox, or sends of this process; return what is confirmed, what is not, what never
        can be published, and why the broker can't be reached, if it can't.
        """
        failure: Unreachable | None = None
        try:
            with self._renewing(conn, claim, [out for out in batch if out.outbox is not None]):
                answers = self.transport.publish(batch)
        except Unreachable as error:
            failure = error
            answers = error.answers + [False] * (len(batch) - len(error.answers))
        sent = [out for out, answer in zip(batch, answers, strict=True) if answer is True]
        unsent = [out for out, answer in zip(batch, answers, strict=True) if answer is False]
        return sent, unsent, _broken(batch, answers), failure

    def _count(self, sent: Sequence[Outgoing]) -> None:
        metrics.count(lambda m: m.count_published(len(sent)))
        self.backlogs.count_messages(out.queue for out in sent)

    def settle(self, conn: Conn) -> None:
        """Delete the rows of confirmed messages whose jobs other transactions had locked. Those that still can't be
        deleted are claimed for longer.
        """
        if not self._unsettled:
            return
        free, locked = _split(conn, self._unsettled)
        self._unsettled, self.settle_at = [], math.inf
        self._put_off(locked)
        self._delete(conn, free)
        publishing.renew_outbox(conn, self._unsettled)

    def _delete(self, conn: Conn, sent: Sequence[Outgoing]) -> None:
        """Delete the rows of confirmed messages; put off those of jobs that another transaction has locked, or that a
        trigger of the user's keeps from being written.
        """
        try:
            publishing.confirm_outbox(conn, sent)
        except (LockNotAvailable, *DATA_ERRORS):
            free, locked = _split(conn, [replace(out, args=b"", options=None) for out in sent])
            for job, found in groupby(sorted(free, key=lambda out: out.job), lambda out: out.job):
                of_job = list(found)
                try:
                    publishing.confirm_outbox(conn, of_job)
                except (LockNotAvailable, *DATA_ERRORS) as error:
                    _log_kept(RuntimeError(f"job {job}: {error}"))
                    locked += of_job
            self._put_off(locked)

    def _passed_jobs(self) -> list[int]:
        """The jobs that are passed over for a while: a trigger of the user's has refused their claim, or they wait for
        `settle`. Until then no more of these is published, so that few messages wait.
        """
        now = time.monotonic()
        self._refused = {job: until for job, until in self._refused.items() if until > now}
        return list({*self._refused, *(out.job for out in self._unsettled)})

    def _put_off(self, locked: Sequence[Outgoing]) -> None:
        self._unsettled += locked
        if self._unsettled:
            self.settle_at = min(self.settle_at, time.monotonic() + SETTLE_PAUSE_SECONDS)

    # What this process sends -----------------------------------------------------------------------------------------

    def publish_sends(self, conn: Conn, batch: Sequence[Outgoing]) -> int:
        """Publish sends of this process, which has a lease of each; return how many are published, or never will be.
        The others go into the outbox.
        """
        sent, unsent, broken, failure = self._publish(conn, batch)
        self.leases.settle(sent)
        if sent:
            self._count(sent)
        if broken:
            _fail(conn, broken)
            self.leases.settle(out for out, _ in broken)
        self.queue_sends(conn, unsent, pause=0.0 if failure else REFUSED_PAUSE_SECONDS)
        if failure is not None:
            raise failure
        if unsent:
            _log_refusal(self._refusal(unsent[0].queue))
        return len(sent) + len(broken)

    def publish_sends_with_room(self, conn: Conn, batch: Sequence[Outgoing]) -> int:
        """Publish as many sends of this process as their queues have room for; return how many that were. The others
        wait for the turn of their job, as all do.
        """
        try:
            rooms = {queue: self.backlogs.room(queue) for queue in {out.queue for out in batch}}
        except Unreachable:
            self.queue_sends(conn, batch, tried=False)
            raise
        now: list[Outgoing] = []
        later: list[Outgoing] = []
        for out in batch:
            rooms[out.queue] -= 1
            (now if rooms[out.queue] >= 0 else later).append(out)
        self.queue_sends(conn, later, tried=False)
        return self.publish_sends(conn, now) if now else 0

    def queue_sends(self, conn: Conn, batch: Sequence[Outgoing], *, pause: float = 0.0, tried: bool = True) -> None:
        """Put sends of this process into the outbox; see `sends.queue_sends`. The leases of a job that another
        transaction has locked, or that a trigger of the user's keeps from being written, are left to lapse.
        """
        for _, group in groupby(sorted(batch, key=lambda out: out.job), lambda out: out.job):
            queued = list(group)
            with suppress(LockNotAvailable, *DATA_ERRORS), self.leases.publishing(queued):
                sends.queue_sends(conn, queued, pause=pause, tried=tried)
                self.leases.settle(queued)

    # Jobs in their turn ----------------------------------------------------------------------------------------------

    def publish_due(self, conn: Conn) -> bool:
        """Publish a batch of what is due in the outbox, and the next job in turn; return whether there was any, or soon
        may be.

        A queue that has no room is passed over.
        """
        self.backlogs.poll_full_queues()
        passed = self._passed_jobs()
        due = publishing.due_queues(conn, self.backlogs.full_queues(), passed)
        rooms = {d.queue: self.backlogs.room(d.queue) for d in due if d.outbox and d.queue}
        published = 0
        if any(d.outbox for d in due):
            rooms = {queue: room for queue, room in rooms.items() if room > 0}
            batch = publishing.claim_outbox(conn, OUTBOX_BATCH_MESSAGES, rooms, passed)
            published = self.publish_outbox(conn, batch) if batch else 0
        if not any(d.in_turn for d in due):
            self._locked_looks = 0
            return published > 0
        return self._publish_next_job(conn) or published > 0

    def _publish_next_job(self, conn: Conn) -> bool:
        """Publish the next job in turn whose queue has room; return whether there was one. The record of outcomes may
        have locked the rows of all of them: then pause, and return True, so that the next round looks again after it
        has published what else is due. After LOCKED_JOB_LOOKS of these return False.
        """
        passed_over: list[int] = []
        while (published := self.publish_job(conn, None, passed_over)) is False:
            continue
        if published or passed_over:
            self._locked_looks = 0
            return bool(published)
        self._locked_looks = (self._locked_looks + 1) % LOCKED_JOB_LOOKS
        time.sleep(LOCKED_JOB_PAUSE_SECONDS)
        return self._locked_looks > 0

    def publish_job(self, conn: Conn, job: int | None, passed_over: list[int]) -> bool | None:
        """Claim a job (None: the next in turn), publish as much of it as its queue has room for, release the claim.

        Returns False when nothing was published, and adds the job to `passed_over`; None when there is no job.
        """
        claim = self._claim(conn, job, passed_over)
        if claim is None:
            return None
        try:
            with self._renewing(conn, claim):
                room = self.backlogs.room(claim.queue, new_job=claim.served_at is None)
            if claim.allowed is not None:
                room = min(room, claim.allowed)
            if claim.lane_by is not None:
                return self._publish_lanes(conn, claim, room, passed_over)
            pause = _pause(room)
            again = self._publish_in_turn(conn, claim, room)
            reached = self._publish_range(conn, claim, room - again)
        except _QueueRefused as error:
            _log_refusal(error)
            self.backlogs.refuse(claim.queue, REFUSED_PAUSE_SECONDS)
            again, reached, pause = 0, claim.watermark, REFUSED_PAUSE_SECONDS
        except Unreachable:
            _release(conn, claim)
            raise
        if reached == claim.watermark:
            _release(conn, claim, unserved=not again, pause=pause)
        if again or reached > claim.watermark:
            return True
        passed_over.append(claim.job)
        return False

    def _claim(self, conn: Conn, job: int | None, passed_over: Sequence[int]) -> PublishClaim | None:
        """Claim a job; see `publish_job`. One whose claim a trigger of the user's refuses is passed over for a while.
        Which one that is turns out as the jobs that are due are claimed one by one.
        """
        began, full, passed = time.monotonic(), self.backlogs.full_queues(), [*passed_over, *self._passed_jobs()]
        if job in passed:
            return None
        try:
            return publishing.claim_job(conn, full=full, passed=passed, job=job)
        except (LockNotAvailable, *DATA_ERRORS) as error:
            if job is not None:
                now = time.monotonic()
                self._refused[job] = now + max(REFUSED_CLAIM_SECONDS, 10 * (now - began))
                _log_kept(RuntimeError(f"job {job}: {error}"))
                return None
        claims = (self._claim(conn, due, passed_over) for due in publishing.due_jobs(conn, full, passed))
        return next(filter(None, claims), None)

    def _publish_lanes(self, conn: Conn, claim: PublishClaim, room: int, passed_over: list[int]) -> bool:
        """Publish what the job's lanes have room for, and release the claim; see `publish_job`."""
        sent = 0
        try:
            for batch in lanes.batches(conn, claim, room):
                taken = self.publish_outbox(conn, batch, claim)
                sent += taken
                if taken < len(batch):
                    break
        except ClaimTakenOver:
            log.debug("job %d was paused, stopped, or claimed by another publisher", claim.job)
        _release(conn, claim, unserved=not sent, pause=_pause(room))
        if not sent:
            passed_over.append(claim.job)
        return bool(sent)

    def _publish_in_turn(self, conn: Conn, claim: PublishClaim, room: int) -> int:
        """Publish up to `room` outbox messages that wait for the job's turn; return how many left the outbox."""
        if not room or not (claim.in_turn or claim.limited):
            return 0
        batch = publishing.claim_in_turn(conn, claim, min(room, timings.PUBLISH_WINDOW_ITEMS))
        return self.publish_outbox(conn, batch, claim) if batch else 0

    def _publish_range(self, conn: Conn, claim: PublishClaim, room: int) -> int:
        """Publish up to `room` bulk items; return the watermark that was reached."""
        watermark = claim.watermark
        end = min(claim.total, watermark + min(room, 2 * timings.PUBLISH_WINDOW_ITEMS))
        while watermark < end:
            window = min(end, watermark + timings.PUBLISH_WINDOW_ITEMS)
            items, stop = publishing.bulk_items(conn, claim, watermark, window)
            if not self._publish_window(conn, claim, items, stop, keep=stop < end):
                return stop
            watermark = stop
        return watermark

    def _publish_window(
        self, conn: Conn, claim: PublishClaim, items: Sequence[Outgoing], stop: int, *, keep: bool
    ) -> bool:
        """Publish the bulk items before `stop` and move the watermark to it.

        `keep` renews the claim. Returns False when another publisher has claimed the job, or it was paused, stopped or
        locked. Raises _QueueRefused and Unreachable.
        """
        batch = self._messages(claim, items)
        try:
            with self._renewing(conn, claim):
                batch, answers = self._publish_bulk(batch)
        except Unreachable as error:
            self._count_answered(conn, claim, batch, error.answers, stop)
            raise
        if not all(answers):
            self._count_answered(conn, claim, batch, answers, stop)
            raise self._refusal(claim.queue)
        if batch:
            self.backlogs.count_published(claim.queue, len(items), len(batch))
            metrics.count(lambda m: m.count_published(len(items)))
        with suppress(LockNotAvailable), transaction(conn):  # of a job that is locked the claim lapses
            _fail(conn, _broken(batch, answers))
            return publishing.advance_watermark(conn, claim, watermark=stop, published=len(items), keep=keep)
        return False

    def _messages(self, claim: PublishClaim, items: Sequence[Outgoing]) -> list[Outgoing]:
        """Return the messages that carry these items. What the limits of a job allow now is all that is left of it."""
        if not self.transport.takes_chunks or not items:
            return list(items)
        end = claim.total if claim.allowed is None else items[-1].item + 1
        return into_chunks(items, lambda item: chunk_size(claim, end - item))

    def _publish_bulk(self, batch: Sequence[Outgoing]) -> tuple[list[Outgoing], list[Answer]]:
        """Publish a batch; publish the items of a chunk that can't be published one by one. Raises Unreachable."""
        answers = self.transport.publish(batch)
        chunks = [out for out, _ in _broken(batch, answers) if out.more]
        if not chunks:
            return list(batch), answers
        singles = [single for chunk in chunks for single in (replace(chunk, more=()), *chunk.more)]
        try:
            again = self.transport.publish(singles)
        except Unreachable as error:
            raise Unreachable(str(error), [answer is True for answer in answers]) from error
        by_item = {out.item: (out, answer) for out, answer in zip(batch, answers, strict=True)}
        by_item |= {out.item: (out, answer) for out, answer in zip(singles, again, strict=True)}
        pairs = [by_item[item] for item in sorted(by_item)]
        return [out for out, _ in pairs], [answer for _, answer in pairs]

    @staticmethod
    def _count_answered(
        conn: Conn, claim: PublishClaim, batch: Sequence[Outgoing], answers: Sequence[Answer], stop: int
    ) -> None:
        """Move the watermark to the first message that isn't answered; items beyond it, up to `stop`, are suspect."""
        sure = next((n for n, answer in enumerate(answers) if answer is False), len(answers))
        watermark = batch[sure].item if sure < len(batch) else stop
        published = sum(1 + len(out.more) for out in batch[:sure])
        with suppress(LockNotAvailable), transaction(conn):
            _fail(conn, _broken(batch[:sure], answers[:sure]))
            publishing.advance_watermark(
                conn, claim, watermark=watermark, published=published, suspect_below=stop, keep=False
            )

    def _refusal(self, queue: str) -> _QueueRefused:
        return _QueueRefused(self.transport.trouble or f"the broker refused messages for the queue {queue!r}")

    @contextmanager
    def _renewing(self, conn: Conn, claim: PublishClaim | None, batch: Sequence[Outgoing] = ()) -> Iterator[None]:
        """Renew the claims of a job and of outbox messages while the transport waits for the broker."""

        def renew() -> None:
            try:
                self.leases.maintain(conn)
                if claim is not None:
                    renew_claim(conn, claim)
                if batch:
                    publishing.renew_outbox(conn, batch)
            except (psycopg.Error, ClaimTakenOver):
                log.debug(
                    "claims could not be renewed; those that expire are published again as suspect", exc_info=True
                )

        self.transport.while_waiting = renew
        try:
            yield
        finally:
            self.transport.while_waiting = None


def _split(conn: Conn, sent: Sequence[Outgoing]) -> tuple[list[Outgoing], list[Outgoing]]:
    """Return the messages of jobs that nobody else has locked, and the others."""
    locked = outcomes.locked_jobs(conn, [(out.job, out.item) for out in sent])
    return [out for out in sent if out.job not in locked], [out for out in sent if out.job in locked]


def _broken(batch: Sequence[Outgoing], answers: Sequence[Answer]) -> list[tuple[Outgoing, Unpublishable]]:
    return [(out, a) for out, a in zip(batch, answers, strict=False) if isinstance(a, Unpublishable)]


def _fail(conn: Conn, broken: Sequence[tuple[Outgoing, Unpublishable]]) -> None:
    """Record the items of messages that can't be published as failed."""
    if not broken:
        return
    now = time.monotonic()
    events = {}
    for out, error in broken:
        failure = replace(describe(error), error_type=type(error).__name__, place="")
        events[out.job, out.item] = Event(out.job, out.item, out.attempt, "failed", 0.0, now, None, failure=failure)
    (first, why), others = broken[0], len(events) - 1
    said = "item %d/%d and %d others fail, since their messages can't be published: %s"
    log.error(said, first.job, first.item, others, why)
    outcomes.record(conn, events.values(), now)


def _pause(room: int) -> float:
    """Return the seconds until a job of which nothing was published has its turn again: 0 if its queue was full."""
    return timings.TURN_PAUSE_SECONDS if room > 0 else 0.0


def _release(conn: Conn, claim: PublishClaim, *, unserved: bool = False, pause: float = 0.0) -> None:
    with suppress(LockNotAvailable):
        publishing.advance_watermark(
            conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=unserved,
            pause=pause if unserved else 0.0,
        )  # fmt: skip
