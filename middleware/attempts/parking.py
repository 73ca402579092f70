"""Messages that are not to run now leave the broker: they are kept in the outbox and published again later.

Those of paused jobs wait until their job goes on, those that were given back until it is its turn. Dead letters that
somebody has moved back to their queue become another attempt at their items.
"""

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TypeAlias

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.delivery import release
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process, Stopping
from callboard.middleware.process.side_thread import SideThread
from callboard.sql.pool import Conn
from callboard.sql.writes.requests import NoSuchJob, NotPossible, Requester
from callboard.sql.writes.retry_action import RetrySelection, retry

log = logging.getLogger("callboard.tracking")
_log_outage = OutageLog(log, "messages that are not to run now wait for the database: %s")

#: Messages that are parked in one transaction.
BATCH_MESSAGES = 1_000
#: The author of the retry in the job's history.
MOVED_BACK = Requester("worker", "dead letters moved back")

#: Job, item and number of an attempt.
Key: TypeAlias = tuple[int, int, int]


class Parking:
    """Keeps messages, then acknowledges them, in a side thread: worker threads go on with other messages.

    `keep` puts attempts into the outbox, and returns those that it refuses, if any: their messages are rejected. A
    message that is not kept before the process stops is not acknowledged, so it is delivered again. `kept` is called
    after each transaction.
    """

    def __init__(
        self, process: Process, keep: Callable[[Conn, Sequence[Key]], Collection[Key] | None], kept: Callable[[], None]
    ) -> None:
        self._process = process
        self._keep = keep
        self._kept = kept
        self._waiting: deque[Attempt] = deque()
        self._side_thread = SideThread("parking")

    def park(self, attempt: Attempt) -> None:
        """Keep an attempt that has not begun; its deliveries must be deferred."""
        self._waiting.append(attempt)
        self._side_thread.run(self._park_waiting)

    def _park_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MESSAGES))]
        if not batch:
            return
        keys = [(*attempt.key, attempt.number) for attempt in batch]
        try:
            refused = self._process.retry_write(lambda conn: self._keep(conn, keys), _log_outage) or ()
        except Stopping:
            return
        release(
            (delivery, key in refused)
            for key, attempt in zip(keys, batch, strict=True)
            for delivery in attempt.deliveries
        )
        self._kept()


def retry_moved_back(conn: Conn, keys: Sequence[Key]) -> Collection[Key]:
    """Give the failed items of dead letters that were moved back another attempt; see `Parking`."""
    refused: list[Key] = []
    for job, found in groupby(sorted(keys), itemgetter(0)):
        of_job = list(found)
        try:
            retry(conn, job, MOVED_BACK, RetrySelection(["failed"], [item for _, item, _ in of_job]))
        except (NoSuchJob, NotPossible) as error:
            log.warning("%d dead letters of job %d were moved back, and stay dead letters: %s", len(of_job), job, error)
            refused += of_job
    return refused
