"""Messages of paused jobs leave RabbitMQ: they are kept in the outbox and published again when their job goes on."""

import logging
import threading
from collections.abc import Sequence

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.delivery import release
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import RETRY_SECONDS, Process, Stopping
from callboard.sql.writes import claims

log = logging.getLogger("callboard.tracking")
_complain = OutageLog(log, "messages of paused jobs wait for the database: %s")

#: Messages parked in one transaction.
BATCH = 1_000


class Parking:
    """Parks messages and lets them be acknowledged, in a thread of its own: worker threads go on to other jobs.

    `defers`: the consumer acknowledges what it is told to, and what can't be parked while the worker is stopping is
    delivered again. Else the worker thread waits, and a message that its stopping worker could not park is lost to the
    broker: the search sends it again.
    """

    def __init__(self, process: Process, *, defers: bool) -> None:
        self._process = process
        self._defers = defers
        self._changed = threading.Condition()
        self._waiting: list[Attempt] = []
        self._parked: set[Attempt] = set()  # that somebody waits for
        self._thread: threading.Thread | None = None

    def park(self, attempt: Attempt) -> None:
        """Park an attempt that was not begun."""
        with self._changed:
            self._waiting.append(attempt)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="callboard-parking", daemon=True)
                self._thread.start()
            self._changed.notify_all()
            while not self._defers and attempt not in self._parked and not self._process.stopping:
                self._changed.wait(RETRY_SECONDS)
            self._parked.discard(attempt)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            try:
                if not self._store(batch):
                    return
            except Exception:
                log.exception(
                    "messages of paused jobs could not be kept; they come again when this worker ends"
                )

    def _store(self, batch: Sequence[Attempt]) -> bool:
        """Write them, however long it takes; False when the worker stops first."""
        try:
            keys = [(*attempt.key, attempt.number) for attempt in batch]
            self._process.retry_write(lambda conn: claims.park(conn, keys), _complain)
        except Stopping:
            return False
        self._settle(batch)
        return True

    def _settle(self, batch: Sequence[Attempt]) -> None:
        if self._defers:
            release((delivery, False) for attempt in batch for delivery in attempt.deliveries)
        with self._changed:
            if not self._defers:
                self._parked.update(batch)
            self._changed.notify_all()
