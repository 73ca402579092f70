"""What is stored is put onto the broker, has to be confirmed, and only then counts as published.

Bulk items by a watermark that only moves forward, in their job's turn; everything else from the outbox.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from callboard.middleware.process.outage import OutageLog
from callboard.middleware.publish import lanes
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.chunking import bundled
from callboard.middleware.publish.transport import Refused, Transport, Unreachable
from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.rows import BulkClaim, Outgoing
from callboard.sql.writes import publishing
from callboard.sql.writes.lanes import TakenOver

log = logging.getLogger("callboard.publisher")
complain_of_refusal = OutageLog(log, "messages are refused, and tried again; nothing is lost: %s")

#: Seconds for which messages wait that the broker refused: then they are behind all others that are due.
DATA_ERRORS = 1.0


@dataclass(slots=True)
class Relay:
    """See the module. Each part raises Unreachable when the broker can't be reached; what is unsent is given back."""

    transport: Transport
    backlogs: QueueBacklogs

    # The outbox ------------------------------------------------------------------------------------------------------

    def outbox(self, conn: Conn, batch: Sequence[Outgoing]) -> int:
        """Publish messages whose outbox rows are claimed, and settle them; how many the broker took."""
        try:
            confirmed, failure = self.transport.publish(batch), None
        except Unreachable as error:
            confirmed, failure = error.confirmed, error
        confirmed += [False] * (len(batch) - len(confirmed))
        sent = [out for out, done in zip(batch, confirmed, strict=True) if done]
        unsent = [out for out, done in zip(batch, confirmed, strict=True) if not done]
        if sent:
            publishing.settle_outbox(conn, sent)
        if unsent:
            publishing.release_outbox(conn, unsent, pause=0.0 if failure else DATA_ERRORS)
        if failure is not None:
            raise failure
        if unsent:
            complain_of_refusal(_refused(unsent[0].queue))
        return len(sent)

    # Jobs in their turn ----------------------------------------------------------------------------------------------

    def next_job(self, conn: Conn) -> bool:
        """The next job in turn whose queue has room; one that is full must not hold up the jobs of others."""
        passed: list[int] = []
        while (sent := self.job(conn, None, passed)) is False:
            continue
        return bool(sent)

    def job(self, conn: Conn, job: int | None, passed: list[int]) -> bool | None:
        """Claim a job (the next in turn, or this one), publish as much of it as there is room for, give it back.

        False when its queue is full, and it is `passed` over then; None when there is no such job.
        """
        claim = publishing.claim_bulk(conn, full=self.backlogs.full(), passed=passed, job=job)
        if claim is None:
            return None
        try:
            room = self.backlogs.room(claim.queue)
            if claim.allowed is not None:
                room = min(room, claim.allowed)
            if claim.lane_by is not None:
                return self._by_lane(conn, claim, room, passed)
            again = self._redo(conn, claim, room)
            reached = self._range(conn, claim, room - again)
        except Unreachable:
            publishing.publish_bulk(conn, claim, watermark=claim.watermark, published=0, keep=False)
            raise
        if reached == claim.watermark:
            publishing.publish_bulk(
                conn, claim, watermark=reached, published=0, keep=False, unserved=not again
            )
        if again or reached > claim.watermark:
            return True
        passed.append(claim.job)
        return False

    def _by_lane(self, conn: Conn, claim: BulkClaim, room: int, passed: list[int]) -> bool:
        """Publish what there is room for in the lanes of a job, and give it back; see `job`."""
        sent = 0
        try:
            for batch in lanes.batches(conn, claim, room):
                taken = self.outbox(conn, batch)
                sent += taken
                if taken < len(batch):
                    break
        except TakenOver:
            log.debug("job %d was paused, stopped, or taken over", claim.job)
        publishing.publish_bulk(
            conn, claim, watermark=claim.watermark, published=0, keep=False, unserved=not sent
        )
        if not sent:
            passed.append(claim.job)
        return bool(sent)

    def _redo(self, conn: Conn, claim: BulkClaim, room: int) -> int:
        """Publish messages that wait in the outbox for the job's turn; how many the broker took."""
        batch = (
            publishing.claim_redo(conn, claim, min(room, timings.PUBLISH_WINDOW_ITEMS))
            if (claim.redo or claim.limited) and room
            else []
        )
        return self.outbox(conn, batch) if batch else 0

    def _range(self, conn: Conn, claim: BulkClaim, room: int) -> int:
        """Publish from the bulk range as much as there is room for; returns the watermark that was reached."""
        watermark = claim.watermark
        end = min(claim.total, watermark + min(room, 2 * timings.PUBLISH_WINDOW_ITEMS))
        while watermark < end:
            stop = min(end, watermark + timings.PUBLISH_WINDOW_ITEMS)
            if not self._stretch(conn, claim, watermark, stop, keep=stop < end):
                return stop
            watermark = stop
        return watermark

    def _stretch(self, conn: Conn, claim: BulkClaim, start: int, stop: int, *, keep: bool) -> bool:
        """Publish the bulk items of one stretch and move the watermark; False when the claim was taken over."""
        items = publishing.bulk_items(conn, claim, start, stop)
        batch = bundled(items, claim.chunk if self.transport.carries else 1)
        try:
            confirmed = self.transport.publish(batch)
        except Unreachable as error:
            self._salvage(conn, claim, batch, error.confirmed, stop)
            raise
        if not all(confirmed):
            self._salvage(conn, claim, batch, confirmed, stop)
            raise _refused(claim.queue)
        if batch:
            self.backlogs.note(claim.queue, len(items), len(batch))
        return publishing.publish_bulk(conn, claim, watermark=stop, published=len(items), keep=keep)

    @staticmethod
    def _salvage(
        conn: Conn, claim: BulkClaim, batch: Sequence[Outgoing], confirmed: Sequence[bool], stop: int
    ) -> None:
        """Count what is confirmed without a gap; what lies beyond may be out, so it is suspect."""
        sure = next((n for n, done in enumerate(confirmed) if not done), len(confirmed))
        watermark = batch[sure].item if sure < len(batch) else stop
        published = sum(1 + len(out.more) for out in batch[:sure])
        publishing.publish_bulk(
            conn, claim, watermark=watermark, published=published, suspect_below=stop, keep=False
        )


def _refused(queue: str) -> Refused:
    return Refused(f"RabbitMQ refused messages for the queue {queue!r}")
