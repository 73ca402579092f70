"""Publishes outbox rows and jobs' bulk items. Only what the broker confirms counts as published.

Bulk items are counted by their job's watermark, which only moves forward; an outbox row is deleted.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from callboard.middleware.process.outage import OutageLog
from callboard.middleware.publish import lanes
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.chunking import into_chunks
from callboard.middleware.publish.transport import RefusedByBroker, Transport, Unreachable
from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import BulkClaim, Outgoing
from callboard.sql.writes import publishing
from callboard.sql.writes.lanes import TakenOver

log = logging.getLogger("callboard.publisher")
log_refusal = OutageLog(log, "the broker refuses messages; they are tried again and nothing is lost: %s")

#: Seconds after which refused messages are due again, behind all others that are due.
REFUSED_PAUSE_SECONDS = 1.0


@dataclass(slots=True)
class Relay:
    """See the module. Each method raises Unreachable when the broker can't be reached, and gives its claim back."""

    transport: Transport
    backlogs: QueueBacklogs

    # The outbox ------------------------------------------------------------------------------------------------------

    def publish_outbox(self, conn: Conn, batch: Sequence[Outgoing]) -> int:
        """Publish messages whose outbox rows are claimed, and settle the rows; return how many the broker took."""
        try:
            confirmed, failure = self.transport.publish(batch), None
        except Unreachable as error:
            confirmed, failure = error.confirmed, error
        confirmed += [False] * (len(batch) - len(confirmed))
        sent = [out for out, done in zip(batch, confirmed, strict=True) if done]
        unsent = [out for out, done in zip(batch, confirmed, strict=True) if not done]
        if sent:
            publishing.confirm_outbox(conn, sent)
        if unsent:
            publishing.release_outbox(conn, unsent, pause=0.0 if failure else REFUSED_PAUSE_SECONDS)
        if failure is not None:
            raise failure
        if unsent:
            log_refusal(_refused(unsent[0].queue))
        return len(sent)

    # Jobs in their turn ----------------------------------------------------------------------------------------------

    def publish_next_job(self, conn: Conn) -> bool:
        """Publish the next job in turn whose queue has room; return whether there was one."""
        passed_over: list[int] = []
        while (published := self.publish_job(conn, None, passed_over)) is False:
            continue
        return bool(published)

    def publish_job(self, conn: Conn, job: int | None, passed_over: list[int]) -> bool | None:
        """Claim a job (None: the next in turn), publish as much of it as its queue has room for, release the claim.

        Returns False when nothing was published, and adds the job to `passed_over`; None when there is no job.
        """
        claim = publishing.claim_bulk(conn, full=self.backlogs.full_queues(), passed=passed_over, job=job)
        if claim is None:
            return None
        try:
            room = self.backlogs.room(claim.queue)
            if claim.allowed is not None:
                room = min(room, claim.allowed)
            if claim.lane_by is not None:
                return self._publish_lanes(conn, claim, room, passed_over)
            again = self._publish_redo(conn, claim, room)
            reached = self._publish_range(conn, claim, room - again)
        except Unreachable:
            _release(conn, claim)
            raise
        if reached == claim.watermark:
            _release(conn, claim, unserved=not again)
        if again or reached > claim.watermark:
            return True
        passed_over.append(claim.job)
        return False

    def _publish_lanes(self, conn: Conn, claim: BulkClaim, room: int, passed_over: list[int]) -> bool:
        """Publish what the job's lanes have room for, and release the claim; see `publish_job`."""
        sent = 0
        try:
            for batch in lanes.batches(conn, claim, room):
                taken = self.publish_outbox(conn, batch)
                sent += taken
                if taken < len(batch):
                    break
        except TakenOver:
            log.debug("job %d was paused, stopped, or claimed by another publisher", claim.job)
        _release(conn, claim, unserved=not sent)
        if not sent:
            passed_over.append(claim.job)
        return bool(sent)

    def _publish_redo(self, conn: Conn, claim: BulkClaim, room: int) -> int:
        """Publish up to `room` outbox messages that wait for the job's turn; return how many the broker took."""
        if not room or not (claim.in_turn or claim.limited):
            return 0
        batch = publishing.claim_in_turn(conn, claim, min(room, timings.PUBLISH_WINDOW_ITEMS))
        return self.publish_outbox(conn, batch) if batch else 0

    def _publish_range(self, conn: Conn, claim: BulkClaim, room: int) -> int:
        """Publish up to `room` bulk items; return the watermark that was reached."""
        watermark = claim.watermark
        end = min(claim.total, watermark + min(room, 2 * timings.PUBLISH_WINDOW_ITEMS))
        while watermark < end:
            stop = min(end, watermark + timings.PUBLISH_WINDOW_ITEMS)
            if not self._publish_window(conn, claim, watermark, stop, keep=stop < end):
                return stop
            watermark = stop
        return watermark

    def _publish_window(self, conn: Conn, claim: BulkClaim, start: int, stop: int, *, keep: bool) -> bool:
        """Publish the bulk items from `start` to before `stop` and move the watermark.

        `keep` renews the claim. Returns False when another publisher has claimed the job, or it was paused or stopped.
        """
        items = publishing.bulk_items(conn, claim, start, stop)
        batch = into_chunks(items, claim.chunk if self.transport.takes_chunks else 1)
        try:
            confirmed = self.transport.publish(batch)
        except Unreachable as error:
            self._count_confirmed(conn, claim, batch, error.confirmed, stop)
            raise
        if not all(confirmed):
            self._count_confirmed(conn, claim, batch, confirmed, stop)
            raise _refused(claim.queue)
        if batch:
            self.backlogs.count_published(claim.queue, len(items), len(batch))
        return publishing.advance_watermark(conn, claim, watermark=stop, published=len(items), keep=keep)

    @staticmethod
    def _count_confirmed(
        conn: Conn, claim: BulkClaim, batch: Sequence[Outgoing], confirmed: Sequence[bool], stop: int
    ) -> None:
        """Move the watermark to the first message that isn't confirmed; items beyond it, up to `stop`, are suspect."""
        sure = next((n for n, done in enumerate(confirmed) if not done), len(confirmed))
        watermark = batch[sure].item if sure < len(batch) else stop
        published = sum(1 + len(out.more) for out in batch[:sure])
        publishing.advance_watermark(
            conn, claim, watermark=watermark, published=published, suspect_below=stop, keep=False
        )


def _release(conn: Conn, claim: BulkClaim, *, unserved: bool = False) -> None:
    publishing.advance_watermark(
        conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=unserved
    )


def _refused(queue: str) -> RefusedByBroker:
    return RefusedByBroker(f"RabbitMQ refused messages for the queue {queue!r}")
