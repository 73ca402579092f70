"""Publishes outbox rows and jobs' bulk items. Only messages that the broker confirms count as published.

A bulk item is published when its job's watermark, which only moves forward, has passed it; an outbox message when its
row is deleted. A send under a lease is an exception: it counts as published when it is stored, and gets an outbox row
if it can't be published.
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

_log_kept = OutageLog(log, "messages wait because the row of their job can't be written; others are published: %s")

#: The most outbox messages that are claimed at a time.
OUTBOX_BATCH_MESSAGES = 500
#: How often in a row the publisher tries jobs in turn whose rows are locked, until the next poll, and the seconds
#: between two tries.
LOCKED_JOB_LOOKS, LOCKED_JOB_PAUSE_SECONDS = 10, 0.005
#: Seconds for which the order of the tenants is kept. To read it takes longer than a claim if there are many open jobs.
TENANTS_SECONDS = 0.25
#: Seconds after which refused messages are published again, after all others that are due.
REFUSED_PAUSE_SECONDS = 1.0
#: Seconds until a job is claimed again after a user's trigger refused its claim; at least ten times the duration of
#: that claim.
REFUSED_CLAIM_SECONDS = 5.0
#: Seconds between two tries to delete the rows of confirmed messages whose jobs are locked. Until then the claims of
#: these messages are renewed, so that no process publishes them again.
SETTLE_PAUSE_SECONDS = 1.0


class _QueueRefused(RuntimeError):
    """The broker takes no message for a queue at present; it may take messages for other queues."""


@dataclass(slots=True)
class Relay:
    """See the module. A method that can't reach the broker releases its claims and raises Unreachable.

    Claims are renewed while the broker is slow. If a message can never be published, only its item fails.
    """

    transport: Transport
    backlogs: QueueBacklogs
    leases: SendLeases
    _unsettled: list[Outgoing] = field(default_factory=list)  # confirmed, but their rows can't be deleted yet
    settle_at: float = math.inf  # monotonic: when to call `settle`
    _locked_looks: int = 0  # in a row
    _refused: dict[int, float] = field(default_factory=dict)  # {job: monotonic time until which it is not claimed}
    _tenants: list[tuple[str, int]] = field(default_factory=list)  # (tenant, priority): see `publishing.due_tenants`
    _tenants_until: float = 0.0  # monotonic: when they are read again

    # The outbox ------------------------------------------------------------------------------------------------------

    def publish_outbox(self, conn: Conn, batch: Sequence[Outgoing], claim: PublishClaim | None = None) -> int:
        """Publish messages whose outbox rows are claimed, and delete the rows; return how many rows were deleted.

        `claim`: the claim of the job in whose turn they are published, if any; with it, raises _QueueRefused if the
        broker takes none of them.
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
        """Publish outbox messages, or sends of this process. Returns the confirmed messages, the unconfirmed ones,
        those that can never be published, and the error if the broker can't be reached, else None.
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
        """Delete the rows of confirmed messages whose jobs other transactions had locked. The claims of rows that still
        can't be deleted are renewed.
        """
        if not self._unsettled:
            return
        free, locked = _by_lock(conn, self._unsettled)
        self._unsettled, self.settle_at = [], math.inf
        self._put_off(locked)
        self._delete(conn, free)
        publishing.renew_outbox(conn, self._unsettled)

    def _delete(self, conn: Conn, sent: Sequence[Outgoing]) -> None:
        """Delete the rows of confirmed messages. Rows are put off if another transaction has locked their job, or a
        user's trigger refuses its update.
        """
        try:
            publishing.confirm_outbox(conn, sent)
        except (LockNotAvailable, *DATA_ERRORS):
            free, locked = _by_lock(conn, [replace(out, args=b"", options=None) for out in sent])
            for job, found in groupby(sorted(free, key=lambda out: out.job), lambda out: out.job):
                of_job = list(found)
                try:
                    publishing.confirm_outbox(conn, of_job)
                except (LockNotAvailable, *DATA_ERRORS) as error:
                    _log_kept(RuntimeError(f"job {job}: {error}"))
                    locked += of_job
            self._put_off(locked)

    def _passed_jobs(self) -> list[int]:
        """Return the jobs that are passed over for a while: a user's trigger refused their claim, or confirmed messages
        of theirs wait for `settle`. No more of their messages are published meanwhile, so that few wait.
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
        """Publish sends of this process, which hold a lease each. Returns how many are confirmed, or can never be
        published; the others are put into the outbox.
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
        """Publish as many sends of this process as their queues have room for; return how many. The others are put into
        the outbox, and wait for the turn of their job.
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
        """Put sends of this process into the outbox; see `sends.queue_sends`. If another transaction has locked their
        job, or a user's trigger refuses its update, their leases are left to expire.
        """
        for _, group in groupby(sorted(batch, key=lambda out: out.job), lambda out: out.job):
            queued = list(group)
            with suppress(LockNotAvailable, *DATA_ERRORS), self.leases.publishing(queued):
                sends.queue_sends(conn, queued, pause=pause, tried=tried)
                self.leases.settle(queued)

    # Jobs in their turn ----------------------------------------------------------------------------------------------

    def publish_due(self, conn: Conn) -> bool:
        """Publish a batch of due outbox messages, and the next job in turn. Returns whether anything was published, or
        may be soon.

        A queue without room is passed over.
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
        """Publish the next job in turn whose queue has room; return whether there was one. Transactions that record
        outcomes may have locked the rows of all these jobs: then pause, and return True, so that the next round tries
        again after its other work. Returns False after `LOCKED_JOB_LOOKS` such tries.
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
        """Claim a job (None: the next in turn), publish as many of its items as its queue has room for, and release the
        claim.

        Returns True if anything was published; False if not, and adds the job to `passed_over`; None when there is no
        job.
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
        """Claim a job; see `publish_job`. A job whose claim a user's trigger refuses is passed over for a while. To
        find that job, the due jobs are claimed one by one.
        """
        began, full, passed = time.monotonic(), self.backlogs.full_queues(), [*passed_over, *self._passed_jobs()]
        if job in passed:
            return None
        try:
            if job is not None:
                return publishing.claim_given_job(conn, job, full=full)
            return self._claim_next(conn, full, passed)
        except (LockNotAvailable, *DATA_ERRORS) as error:
            if job is not None:
                now = time.monotonic()
                self._refused[job] = now + max(REFUSED_CLAIM_SECONDS, 10 * (now - began))
                _log_kept(RuntimeError(f"job {job}: {error}"))
                return None
        claims = (self._claim(conn, due, passed_over) for due in publishing.due_jobs(conn, full, passed))
        return next(filter(None, claims), None)

    def _claim_next(self, conn: Conn, full: Sequence[str], passed: Sequence[int]) -> PublishClaim | None:
        """Claim the next job in turn. The order of the tenants is read again after `TENANTS_SECONDS`, and when none of
        their jobs can be served.
        """
        known = self._tenants if time.monotonic() < self._tenants_until else []
        claim = publishing.claim_job(conn, known, full=full, passed=passed) if known else None
        if claim is None:
            self._tenants = publishing.due_tenants(conn, full, passed)
            self._tenants_until = time.monotonic() + TENANTS_SECONDS
            if not set(self._tenants).issubset(known):
                claim = publishing.claim_job(conn, self._tenants, full=full, passed=passed)
        if claim is not None:
            self._end_turn(claim)
        return claim

    def _end_turn(self, claim: PublishClaim) -> None:
        """Put the tenant of a claimed job behind the others of the same priority."""
        turn = claim.tenant, claim.priority
        if turn in self._tenants:
            self._tenants.remove(turn)
            self._tenants.insert(sum(priority <= claim.priority for _, priority in self._tenants), turn)

    def _publish_lanes(self, conn: Conn, claim: PublishClaim, room: int, passed_over: list[int]) -> bool:
        """Publish as many items as the job's lanes have room for, and release the claim; see `publish_job`."""
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
        """Publish up to `room` outbox messages that wait for the job's turn; return how many rows were deleted."""
        if not room or not (claim.in_turn or claim.limited):
            return 0
        batch = publishing.claim_in_turn(conn, claim, min(room, timings.PUBLISH_WINDOW_ITEMS))
        return self.publish_outbox(conn, batch, claim) if batch else 0

    def _publish_range(self, conn: Conn, claim: PublishClaim, room: int) -> int:
        """Publish up to `room` bulk items; return the new watermark."""
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
        with suppress(LockNotAvailable), transaction(conn):  # the claim of a locked job expires
            _fail(conn, _broken(batch, answers))
            return publishing.advance_watermark(conn, claim, watermark=stop, published=len(items), keep=keep)
        return False

    def _messages(self, claim: PublishClaim, items: Sequence[Outgoing]) -> list[Outgoing]:
        """Return the messages that carry these items. In a job with limits, only items allowed now count as left."""
        if not self.transport.takes_chunks or not items:
            return list(items)
        end = claim.total if claim.allowed is None else items[-1].item + 1
        return into_chunks(items, lambda item: chunk_size(claim, end - item))

    def _publish_bulk(self, batch: Sequence[Outgoing]) -> tuple[list[Outgoing], list[Answer]]:
        """Publish a batch. If a chunk can't be published, its items are published one by one. Raises Unreachable."""
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
        """Move the watermark to the first message that isn't confirmed; items from there to `stop` become suspect."""
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


def _by_lock(conn: Conn, sent: Sequence[Outgoing]) -> tuple[list[Outgoing], list[Outgoing]]:
    """Return the messages of unlocked jobs, and the messages of jobs that another transaction has locked."""
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
    text = "item %d/%d and %d others fail, since their messages can't be published: %s"
    log.error(text, first.job, first.item, others, why)
    outcomes.record(conn, events.values(), now)


def _pause(room: int) -> float:
    """Return the seconds until the next turn of a job of which nothing was published; 0 if its queue was full."""
    return timings.TURN_PAUSE_SECONDS if room > 0 else 0.0


def _release(conn: Conn, claim: PublishClaim, *, unserved: bool = False, pause: float = 0.0) -> None:
    with suppress(LockNotAvailable):
        publishing.advance_watermark(
            conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=unserved,
            pause=pause if unserved else 0.0,
        )  # fmt: skip
