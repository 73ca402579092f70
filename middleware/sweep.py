"""The sweep: whatever is stuck is repaired. One process at a time does it, elected by a lease that lapses by itself."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.burial import bury
from callboard.sql import writes
from callboard.sql.pool import Conn, Pool

log = logging.getLogger("callboard.sweep")

#: Seconds between two rounds, and for which the lease of the one that sweeps holds.
PERIOD = 2.0
LEASE = 10.0
#: Seconds between two samples of a job, and between two searches for lost messages.
SAMPLE = 4.0
SEARCH = 10.0
#: Seconds without movement after which a job's messages are looked for.
QUIET = 10.0
#: Items looked at a job and search.
SEARCH_LIMIT = 10_000


@dataclass(slots=True)
class Sweep:
    """See the module. `depth` tells how many messages lie ready in a queue, or None when it can't."""

    pool: Pool
    depth: Callable[[str], int | None]
    _holder: str = field(
        default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}:{time.monotonic_ns()}"
    )
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _steady_since: float = 0.0  # since when the database has answered without a break
    _sampled: float = 0.0
    _searched: float = 0.0
    _missing: set[tuple[int, int, int]] = field(default_factory=set)

    def start(self) -> None:
        """Sweep in a thread, whenever this process is the elected one."""
        self._thread = threading.Thread(target=self.run, name="callboard-sweep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and let another process take over at once."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(5)
        try:
            with self.pool.connection(timeout=2) as conn:
                writes.drop_lease(conn, "sweep", self._holder)
        except (psycopg.Error, PoolTimeout):
            log.debug("the lease was not given back; it lapses", exc_info=True)

    def run(self) -> None:
        """Sweep until stopped."""
        while not self._stopping.is_set():
            try:
                with self.pool.connection() as conn:
                    self._steady_since = self._steady_since or time.monotonic()
                    if writes.take_lease(conn, "sweep", self._holder, LEASE):
                        self.round(conn)
            except (psycopg.Error, PoolTimeout):
                self._steady_since = 0.0
                log.debug("no sweep: the database is away", exc_info=True)
            except Exception:
                log.exception("the sweep met an error it doesn't know; it goes on")
            self._stopping.wait(PERIOD)

    def round(self, conn: Conn) -> None:
        """Everything that is due now."""
        # After an outage of the database nobody's heart has beaten for a while: they get the time to be heard again.
        if time.monotonic() - self._steady_since >= writes.DEAD_AFTER:
            for worker in writes.dead_workers(conn):
                bury(conn, worker)
            for job in writes.break_abandoned(conn):
                log.warning("job %d is stopped: its submission broke off", job)
        for job in writes.sealable_jobs(conn):
            writes.seal_job(conn, job)
        for job in writes.close_jobs(conn):
            log.error("job %d was done and not closed; it is now. Please report this", job)
        now = time.monotonic()
        if now - self._sampled >= SAMPLE:
            self._sampled = now
            writes.sample_jobs(conn)
            writes.drop_messages_of_stopped_jobs(conn)
        if now - self._searched >= SEARCH:
            self._searched = now
            self._search(conn)

    def _search(self, conn: Conn) -> None:
        """Republish what was published, that nobody holds in two searches, and that no queue can still hold."""
        missing: set[tuple[int, int, int]] = set()
        for job, _ in writes.quiet_jobs(conn, QUIET):
            unheld = writes.unheld_items(conn, job, SEARCH_LIMIT)
            empty = {queue: self.depth(queue) == 0 for queue in {queue for _, _, queue in unheld}}
            found = {(job, item, attempt) for item, attempt, queue in unheld if empty[queue]}
            lost = [(item, attempt) for _, item, attempt in sorted(found & self._missing)]
            if lost:
                count = writes.republish(conn, job, lost)
                log.warning("job %d: %d items had lost their messages; they are sent again", job, count)
            missing |= found
        self._missing = missing
