"""The counters of a worker process for Prometheus, if CALLBOARD_METRICS_PORT is set.

The processes of a `dramatiq` command write into one folder, and one more process serves it, as with Dramatiq's own
Prometheus middleware. If the app has that middleware, its folder and its server are used, because the client supports
only one folder.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process.own_folder import own_folder
from callboard.sql import settings
from callboard.sql.rows import Event

if TYPE_CHECKING:
    from prometheus_client import Metric

log = logging.getLogger("callboard.journal")

#: The environment variable from which Prometheus's client reads the folder.
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
#: The buckets of the histograms: seconds that an item runs, or waits;
SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 20, 60, 300, 1800, 7200)
#: seconds that a flush takes, and the outcomes in it.
FLUSH_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10)
FLUSH_OUTCOMES = (1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """The counters of this process."""

    def __init__(self) -> None:
        # Imported here, because the client reads the folder's name when it is imported.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: PLC0415

        registry, names = CollectorRegistry(), ["actor", "queue"]
        self._took = Histogram(
            "callboard_attempt_seconds", "How long an attempt took.", names, buckets=SECONDS, registry=registry
        )
        self._waited = Histogram(
            "callboard_queue_wait_seconds", "From the message of a first attempt to its start.", names,
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self._attempts = Counter(
            "callboard_attempts", "Attempts by how they ended.", [*names, "state"], registry=registry
        )
        self._flush = Histogram(
            "callboard_flush_seconds", "How long a transaction of outcomes took.", buckets=FLUSH_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._outcomes = Histogram(
            "callboard_flush_outcomes", "Outcomes in one transaction.", buckets=FLUSH_OUTCOMES, registry=registry
        )
        self._backlog = Gauge(
            "callboard_journal_backlog", "Outcomes that are not committed.", multiprocess_mode="livesum",
            registry=registry,
        )  # fmt: skip
        self._published = Counter("callboard_published", "Items published.", registry=registry)
        self._repairs = Counter("callboard_counter_repairs", "Jobs whose counters had drifted.", registry=registry)

    def count_flush(self, outcomes: int, seconds: float, backlog: int) -> None:
        """Count a transaction of `outcomes` outcomes that took `seconds`; `backlog` outcomes are not yet committed."""
        self._flush.observe(seconds)
        self._outcomes.observe(outcomes)
        self._backlog.set(backlog)

    def count_ended(self, ended: Iterable[tuple[Attempt, Event]]) -> None:
        """Count attempts whose outcomes are committed."""
        now, clock = time.monotonic(), time.time()
        for attempt, event in ended:
            message = attempt.message
            labels = (attempt.actor, message.queue_name if message is not None else "")
            self._attempts.labels(*labels, event.state).inc()
            self._took.labels(*labels).observe(event.elapsed)
            if event.attempt == 1 and message is not None:
                started = clock - (now - event.ended) - event.elapsed
                self._waited.labels(*labels).observe(max(started - message.message_timestamp / 1000, 0.0))

    def count_published(self, items: int) -> None:
        """Count items that a broker confirmed."""
        self._published.inc(items)

    def count_repairs(self, jobs: int) -> None:
        """Count jobs whose counters had drifted and were repaired."""
        self._repairs.inc(jobs)


#: The counters of this process; None: it counts nothing.
current: Metrics | None = None


def count(note: Callable[[Metrics], None]) -> None:
    """Call `note` with the counters of this process, if it has any. An error, for example a full disk, ends the
    counting and is logged.
    """
    global current  # noqa: PLW0603
    if current is not None:
        try:
            note(current)
        except Exception:
            current = None
            log.exception("metrics can't be written, and are not counted any more")


def start(shared: str | None) -> None:
    """Count from now on, into the folder of PROMETHEUS_MULTIPROC_DIR, or `shared`, or a folder of our own."""
    global current  # noqa: PLW0603
    port = settings.METRICS_PORT.get()
    if port is not None:
        _set_folder(shared, port)
        current = Metrics()


def stop() -> None:
    """Remove the gauges of this process, which exits."""
    if current is not None:
        from prometheus_client import multiprocess  # noqa: PLC0415

        multiprocess.mark_process_dead(os.getpid())


def serve() -> int:
    """Serve the metrics of all processes until this process is stopped; return 1 if the port can't be used. Dramatiq
    runs this in a process of its own.
    """
    port = settings.METRICS_PORT.get()
    if port is not None:
        _set_folder(None, port)
        from prometheus_client import CollectorRegistry, start_http_server  # noqa: PLC0415

        registry = CollectorRegistry()
        registry.register(_Ours())
        try:
            _, thread = start_http_server(port, registry=registry)
        except OSError as error:
            why = "no metrics are served: CALLBOARD_METRICS_PORT=%d can't be used: %s; set another port"
            log.warning(why, port, error)
            return 1
        with suppress(KeyboardInterrupt):
            thread.join()
    return 0


class _Ours:
    """Collects only our metrics from the folder, where an app may have its own."""

    def collect(self) -> Sequence["Metric"]:
        """The metrics of all processes."""
        from prometheus_client import CollectorRegistry, multiprocess  # noqa: PLC0415

        folder = Path(os.environ[FOLDER])
        for path in folder.glob("gauge_live*_*.db"):  # the process may have been killed
            pid = int(path.stem.rpartition("_")[2])
            if not _is_alive(pid):
                multiprocess.mark_process_dead(pid, str(folder))
        found = multiprocess.MultiProcessCollector(CollectorRegistry(), str(folder)).collect()
        return [one for one in found if one.name.startswith("callboard_")]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _set_folder(shared: str | None, port: int) -> None:
    """Set the folder of Prometheus's client, unless the environment has one: to `shared`, or else a folder of our own.
    Creates it. Raises NotConfigured.
    """
    if FOLDER not in os.environ:
        try:
            os.environ[FOLDER] = shared or str(own_folder(f"metrics-{port}"))
        except PermissionError as error:
            raise settings.NotConfigured(f"{error}: name another one by {FOLDER}") from error
    Path(os.environ[FOLDER]).mkdir(mode=0o700, parents=True, exist_ok=True)
