"""The row of a worker process in `workers`: registration, heartbeat, and polling for controls of jobs."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.process.periodic import Periodic
from callboard.middleware.process.process import Process
from callboard.sql import settings
from callboard.sql.pool import Conn
from callboard.sql.rows import JobControl, WorkerInfo
from callboard.sql.signature import Signature
from callboard.sql.writes import jobs, workers

log = logging.getLogger("callboard.worker")

#: Seconds between two heartbeats.
BEAT_SECONDS = 2.0
#: Seconds between two polls for controls.
POLL_SECONDS = 0.5
#: A poll reads the controls of so many seconds, since a transaction may commit late.
CONTROLS_SECONDS = 20.0


class OtherBroker(RuntimeError):
    """Workers of another broker use the same database."""


@dataclass(slots=True)
class Heartbeat:
    """The heartbeat of this worker.

    `held` gives the (job, item) of every message that the process has prefetched or runs; `apply_controls` takes the
    controls of jobs; `trouble` tells why the process is cut off from its broker, or None; `make_stages` makes the
    stages that are due; `mean_seconds` gives the mean durations of actors that are new since the last call.
    """

    process: Process
    held: Callable[[], Sequence[tuple[int, int]]]
    apply_controls: Callable[[Iterable[JobControl]], None]
    trouble: Callable[[], str | None]
    make_stages: Callable[[Conn], None]
    mean_seconds: Callable[[], Mapping[str, float]]
    _polled: float = -CONTROLS_SECONDS
    _beaten: float = 0.0
    _periodic: Periodic = field(init=False)

    def __post_init__(self) -> None:
        self._periodic = Periodic("heartbeat", min(POLL_SECONDS, BEAT_SECONDS / 2), self._step)

    def start(
        self, actors: dict[str, str], signatures: dict[str, Signature], broker: str | None,
        is_same: Callable[[str], bool],
    ) -> None:  # fmt: skip
        """Register the process as a worker with these actors ({name: queue}), and beat from now on. `broker` names the
        broker, None where it isn't known; `is_same` tells whether it has another name, too.

        Raises OtherBroker, psycopg.Error and PoolTimeout.
        """
        release = settings.RELEASE.get()
        info = WorkerInfo(
            socket.gethostname(), os.getpid(), self.process.threads, release, actors, signatures, broker
        )
        with self.process.pool.connection() as conn:
            self.process.worker = workers.register_worker(conn, info)
            for other, host, theirs in workers.other_brokers(conn, self.process.worker):
                if is_same(theirs):
                    continue
                workers.stop_worker(conn, self.process.worker)
                raise OtherBroker(
                    f"this worker is on {broker}, and worker {other} at {host} uses the same database on {theirs}: "
                    "messages would go to the wrong one. Give each broker and virtual host a database of its own; to "
                    "move to another broker, stop the old workers first. Nodes of one cluster whose user may not "
                    "declare exchanges need a common name: rabbitmqctl set_cluster_name"
                )
            self._poll_controls(conn)  # before a message of a stopped job can arrive
        self._beaten = time.monotonic()
        self._periodic.start()

    def stop(self, timeout: float) -> None:
        """Record that the worker stopped; wait at most `timeout` seconds for the database."""
        self._periodic.stop(timeout / 2)
        try:
            self.process.write(self._say_goodbye, timeout=max(timeout / 2, 0.1))
        except (psycopg.Error, PoolTimeout) as error:
            log.warning("this worker's end could not be recorded: %s", str(error).strip())

    def _say_goodbye(self, conn: Conn) -> None:
        self._report_means(conn)
        workers.stop_worker(conn, self.process.worker)

    def _report_means(self, conn: Conn) -> None:
        if means := self.mean_seconds():
            workers.report_means(conn, means)

    def _step(self) -> None:
        with self.process.pool.connection() as conn:
            if time.monotonic() - self._beaten >= BEAT_SECONDS:
                workers.beat(conn, self.process.worker, self.held(), self.trouble())
                self._beaten = time.monotonic()
            self._poll_controls(conn)
            self._report_means(conn)
            self.make_stages(conn)

    def _poll_controls(self, conn: Conn) -> None:
        """Apply the latest controls, or all of them after a gap; close the stopped jobs that have no item in flight."""
        now = time.monotonic()
        recent = now - self._polled < CONTROLS_SECONDS / 2
        controls = workers.job_controls(conn, CONTROLS_SECONDS if recent else None)
        self._polled = now
        self.apply_controls(controls)
        if any(control.stopping for control in controls):
            jobs.close_stopped(conn)
