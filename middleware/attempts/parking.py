"""Messages of paused jobs leave the broker: they are kept in the outbox and published again when their job goes on."""

import logging
from collections import deque

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.delivery import release
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process, Stopping
from callboard.middleware.process.side_thread import SideThread
from callboard.sql.writes import claims

log = logging.getLogger("callboard.tracking")
_log_outage = OutageLog(log, "messages of paused jobs wait for the database: %s")

#: Messages that are parked in one transaction.
BATCH_MESSAGES = 1_000


class Parking:
    """Parks messages, then acknowledges them, in a side thread: worker threads go on with other jobs.

    What can't be parked before the process stops is not acknowledged, so it is delivered again.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._waiting: deque[Attempt] = deque()
        self._side_thread = SideThread("parking")

    def park(self, attempt: Attempt) -> None:
        """Park an attempt that has not begun; its deliveries must be deferred."""
        self._waiting.append(attempt)
        self._side_thread.run(self._park_waiting)

    def _park_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_MESSAGES))]
        if not batch:
            return
        keys = [(*attempt.key, attempt.number) for attempt in batch]
        try:
            self._process.retry_write(lambda conn: claims.park(conn, keys), _log_outage)
        except Stopping:
            return
        release((delivery, False) for attempt in batch for delivery in attempt.deliveries)
