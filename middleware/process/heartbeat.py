"""A worker process as the database knows it: its row, its heartbeat, and what the jobs it works on tell it."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.process.periodic import Periodic
from callboard.middleware.process.process import Process
from callboard.sql import settings
from callboard.sql.pool import Conn
from callboard.sql.rows import JobControl, WorkerInfo
from callboard.sql.writes import jobs, workers

log = logging.getLogger("callboard.worker")

#: Seconds between two heartbeats, and between two looks at what jobs were told.
BEAT = 2.0
ASK = 0.5
#: Seconds of what jobs were told that are asked for: what is committed late is heard all the same.
WITHIN = 20.0


@dataclass(slots=True)
class Heartbeat:
    """The row of this process in `workers`. `holds` tells what the process has in hand or prefetched, as (job, item);
    `controlled` takes what jobs are told; `trouble` tells what keeps it from its broker; `advance` makes jobs go on.
    """

    process: Process
    holds: Callable[[], Sequence[tuple[int, int]]]
    controlled: Callable[[Iterable[JobControl]], None]
    trouble: Callable[[], str | None]
    advance: Callable[[Conn], None]
    _heard: float = -WITHIN
    _beaten: float = 0.0
    _periodic: Periodic = field(init=False)

    def __post_init__(self) -> None:
        self._periodic = Periodic("heartbeat", min(ASK, BEAT / 2), self._step)

    def start(self, actors: dict[str, str]) -> None:
        """Register the process as a worker, announce its actors ({name: queue}), and beat from now on."""
        release = settings.RELEASE.get()
        info = WorkerInfo(socket.gethostname(), os.getpid(), self.process.threads, release, actors)
        with self.process.pool.connection() as conn:
            self.process.worker = workers.register_worker(conn, info)
            self._listen(conn)  # before a message of a stopped job can arrive
        self._beaten = time.monotonic()
        self._periodic.start()

    def stop(self, patience: float = 5.0) -> None:
        """Say goodbye; a database that is away is none of a stopping worker's concern."""
        self._periodic.stop(patience / 2)
        try:
            with self.process.pool.connection(timeout=max(patience / 2, 0.1)) as conn:
                workers.stop_worker(conn, self.process.worker)
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("could not say goodbye to the database: %s", str(error).strip())

    def _step(self) -> None:
        with self.process.pool.connection() as conn:
            if time.monotonic() - self._beaten >= BEAT:
                workers.beat(conn, self.process.worker, self.holds(), self.trouble())
                self._beaten = time.monotonic()
            self._listen(conn)
            self.advance(conn)

    def _listen(self, conn: Conn) -> None:
        """Hear what jobs were told, all of it after a silence; and close those that have nothing in hand any more."""
        now = time.monotonic()
        controls = workers.job_controls(conn, WITHIN if now - self._heard < WITHIN / 2 else None)
        self._heard = now
        self.controlled(controls)
        if any(control.stopping for control in controls):
            jobs.close_stopped(conn)
