"""Whether anything grows with what is already there: the same statements on an almost empty database and on a full one.

`python -m tests.bench scale --items N`: so many finished items lie in the full one; `year --items 100000000`: all of
them in jobs of 1,000 items that ended over the last year.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from callboard.middleware.process.process import Process
from callboard.middleware.publish.backlog import QueueBacklogs
from callboard.middleware.publish.relay import Relay
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.sweep.retention import Retention
from callboard.middleware.sweep.sweep import Sweep
from callboard.sql import pool
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.reads.job_filter import JOB_OPEN, JobFilter
from callboard.sql.reads.queries import Query
from callboard.sql.statements import statement, with_timings
from callboard.sql.writes import retention, workers
from tests.bench import history
from tests.bench.rig import Rig
from tests.support.databases import migrated, with_database
from tests.support.jobs import make_worker
from tests.support.transports import StubTransport

#: Items of a finished job that is read; other jobs of the almost empty database, and items of each.
EACH, FEW_JOBS, FEW_EACH = 2_000, 500, 16
#: Items of each of the other jobs of a year; and of each job of a year in full, of which the almost empty database has
#: as many as are deleted there.
YEAR_EACH, FULL_EACH, LEAVING = 10, 1_000, 100
#: Items of an open job, and open jobs of the almost empty database.
OPEN_EACH, FEW_OPEN = 40, 60
#: Items that a worker holds at a heartbeat.
HELD = 400
#: Seconds for which finished jobs are kept: longer than the oldest is there.
KEPT_SECONDS = 400 * 86_400.0
#: Runs that are not measured: PostgreSQL plans the first ones each time.
WARM_UP = 11
#: The most milliseconds of a turn.
TURN_MS = 50.0

BLOCKS = (
    "SELECT sum(pg_stat_get_blocks_fetched(oid))::bigint FROM pg_class WHERE relnamespace = 'callboard'::regnamespace"
)

Work = Callable[["Side"], object]


class BusyTransport(StubTransport):
    """Takes every message, and has a queue that is never empty: no message counts as lost."""

    def depth(self, queue: str) -> int | None:
        super().depth(queue)
        return 10


@dataclass(slots=True)
class Side:
    """One of the two databases: a connection as the product's, a job that is read, and the parts of a worker."""

    url: str
    conn: Conn
    job: int
    worker: int
    sweep: Sweep = field(init=False)
    relay: Relay = field(init=False)
    open: list[int] = field(default_factory=list)
    leaving: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sweep = Sweep(Process(self.url), BusyTransport, _retention=Retention(KEPT_SECONDS))
        transport = BusyTransport()
        self.relay = Relay(transport, QueueBacklogs(transport), SendLeases())


def table(rig: Rig, items: int, runs: int) -> Iterator[str]:
    """Rows of Markdown tables, each as it is measured; `items` are those of the full database, `runs` of each line."""
    jobs, year, opened = items // EACH, items // 100, max(items // 1_000, FEW_OPEN)
    with ExitStack() as stack:
        few, full = side_of(_made(rig, stack), stack, 1), side_of(_made(rig, stack), stack, jobs)
        yield _head(f"{items:,} items in {jobs:,} jobs")
        yield from (_row(what, work, few, full, runs, goal) for what, (goal, work) in READS.items())
        history.add_finished(full.conn, year - jobs, YEAR_EACH)
        for side in (few, full):
            side.conn.execute("VACUUM (ANALYZE)")
        yield _head(f"{year:,} jobs, all over")
        yield from (_row(what, work, few, full, runs, goal) for what, (goal, work) in READS.items())
        add_open(few, FEW_OPEN)
        add_open(full, opened)
        yield _head(f"{year:,} jobs that are over and {opened:,} open ones")
        yield from (_row(what, work, few, full, runs, 2.0, TURN_MS) for what, work in TURNS.items())


def year(rig: Rig, items: int, runs: int) -> Iterator[str]:
    """As `table`, with all jobs of the full database of `FULL_EACH` items."""
    with ExitStack() as stack:
        few = side_of(_made(rig, stack), stack, LEAVING, FULL_EACH)
        full = side_of(_made(rig, stack), stack, items // FULL_EACH, FULL_EACH)
        yield from year_of(few, full, runs)


def year_of(few: Side, full: Side, runs: int) -> Iterator[str]:
    """The rows of `year`."""
    (jobs,) = full.conn.execute("SELECT count(*) FROM callboard.jobs").fetchone() or (0,)
    yield _head(f"{jobs:,} jobs of {FULL_EACH:,} items", LEAVING)
    yield from (_row(what, work, few, full, runs, goal) for what, (goal, work) in READS.items())
    for side, opened in ((few, FEW_OPEN), (full, jobs // 10)):
        add_open(side, opened)
    yield _head(f"{jobs:,} jobs that are over and {jobs // 10:,} open ones", LEAVING)
    yield from (_row(what, work, few, full, runs, 2.0, TURN_MS) for what, work in TURNS.items())
    yield _row("retention of a job", _delete, few, full, min(runs, LEAVING - WARM_UP - 1), 1.5)


def _head(what: str, jobs: int = 1) -> str:
    few = f"{FEW_JOBS + jobs:,} jobs"
    return f"\n| ms of processors (blocks) | {few} | {what} | ratio | goal |\n|---|---|---|---|---|"


def _made(rig: Rig, stack: ExitStack) -> str:
    return with_database(rig.database_url, stack.enter_context(migrated(rig.database_url)))


def side_of(url: str, stack: ExitStack, jobs: int, each: int = EACH) -> Side:
    """A database with so many finished jobs of `each` items, and some smaller ones."""
    conn = stack.enter_context(connect(url))
    conn.execute("SET max_parallel_workers_per_gather = 0")  # all of it is in one process
    history.add_finished(conn, FEW_JOBS, FEW_EACH, years=1)
    made = history.add_finished(conn, jobs, each, workers=jobs)
    conn.execute("VACUUM (ANALYZE)")
    return side_with(url, conn, made)


def side_with(url: str, conn: Conn, jobs: list[int]) -> Side:
    """A database that has these finished jobs, the oldest first."""
    side = Side(url, conn, jobs[len(jobs) // 2], make_worker(conn, "actor 0", "actor 1", "actor 2"))
    side.leaving = jobs[:LEAVING][::-1]
    return side


def add_open(side: Side, jobs: int) -> None:
    """Add open jobs, half of whose items are to be published."""
    side.open = history.add_open(side.conn, jobs, OPEN_EACH)
    side.conn.execute("VACUUM (ANALYZE)")


def _row(what: str, work: Work, few: Side, full: Side, runs: int, goal: float, most: float | None = None) -> str:
    times: tuple[list[float], list[float]] = ([], [])
    read: tuple[list[int], list[int]] = ([], [])
    for n in range(-WARM_UP, runs):
        for side, taken, blocks in zip((few, full), times, read, strict=True):
            workers.beat(side.conn, side.worker, [], None)
            before_it, began = _blocks(side.conn), _seconds(side.conn)
            work(side)
            if n >= 0:
                taken.append(1_000 * (_seconds(side.conn) - began))
                blocks.append(_blocks(side.conn) - before_it)
    before, after = (median(one) for one in times)
    ratio = after / before
    reached = ratio <= goal and (most is None or after <= most)
    said = f"≤ {goal}" + (f", ≤ {most:.0f} ms" if most else "") + ("" if reached else ": missed")
    few_blocks, full_blocks = (median(one) for one in read)
    cells = f"{before:.2f} ({few_blocks:,.0f}) | {after:.2f} ({full_blocks:,.0f})"
    return f"| {what} | {cells} | {ratio:.2f} | {said} |"


def _seconds(conn: Conn) -> float:
    """What this thread and the server process of a connection have had of a processor: others use the machine too."""
    server = Path(f"/proc/{conn.info.backend_pid}/schedstat").read_text(encoding="ascii")
    return time.thread_time() + int(server.split()[0]) / 1e9


def _blocks(conn: Conn) -> int:
    """The blocks of tables and indexes that the server has fetched for this database."""
    conn.execute("SELECT pg_stat_force_next_flush()")
    row = conn.execute(BLOCKS).fetchone()
    return int(row[0]) if row else 0


def _read(make: Callable[[Side], Query[Any]]) -> Work:
    def read(side: Side) -> None:
        query = make(side)
        side.conn.execute(pool._BEGIN_READ, prepare=False)
        side.conn.execute(statement(query.name), with_timings(query.parameters)).fetchall()
        side.conn.commit()

    return read


def _list(**wanted: Any) -> Work:
    return _read(lambda _: queries.jobs(JobFilter(**wanted)))


#: What users read: the goal, and the work.
READS: dict[str, tuple[float, Work]] = {
    "progress of a job": (1.1, _read(lambda side: queries.job(side.job))),
    "list of jobs": (1.2, _list()),
    "list, state:failed": (1.2, _list(states=frozenset(["failed"]))),
    "list, is:open": (1.2, _list(states=JOB_OPEN)),
    "list, actor": (1.2, _list(actor="actor 1")),
    "list, tenant": (1.2, _list(tenant="tenant 1")),
    "list, actor and tenant": (1.2, _list(actor="actor 1", tenant="tenant 1")),
    "list, text that many have": (1.2, _list(names=("job",))),
    "list, text that one has": (1.2, _list(names=("job 177",))),
    "list, metadata": (1.2, _list(metadata={"customer": "177"})),
    "list, since:24h": (1.2, _list(created_after=timedelta(hours=24))),
    "list, is:failing": (1.2, _list(failing=True)),
    "list, not:failing": (1.2, _list(failing=False)),
    "list, is:stalled": (1.2, _list(stalled=True)),
    "list, ended:24h": (1.2, _list(ended_after=timedelta(hours=24))),
    "list, until:180d": (1.2, _list(created_before=timedelta(days=180))),
    "list, key": (1.2, _list(key="none")),
    "counts of the page": (1.2, _read(lambda _: queries.job_counts())),
    "items of a job": (1.5, _read(lambda side: queries.items(side.job))),
    "items that failed": (1.5, _read(lambda side: queries.items(side.job, state="failed"))),
    "items that failed by an error": (1.5, _read(lambda side: queries.items(side.job, error="shop.Error1"))),
    "items that succeeded": (1.5, _read(lambda side: queries.items(side.job, state="succeeded"))),
    "attempts of an item": (1.5, _read(lambda side: queries.attempts(side.job, 0))),
    "errors of a job": (1.5, _read(lambda side: queries.errors(side.job))),
    "chart of a job": (1.5, _read(lambda side: queries.samples(side.job))),
    "metrics of items": (1.2, _read(lambda _: queries.metric_items())),
    "metrics of jobs": (1.2, _read(lambda _: queries.metric_facts())),
    "queues": (1.2, _read(lambda _: queries.queues())),
}


def _sweep(side: Side) -> None:
    side.sweep._steady_since = side.sweep._sampled = side.sweep._searched = -1_000.0
    side.sweep._retention._looked = None
    side.sweep.round(side.conn)


def _heartbeat(side: Side) -> None:
    held = [(side.open[n % len(side.open)], n) for n in range(HELD)]
    workers.beat(side.conn, side.worker, held, None)
    workers.job_controls(side.conn, 20.0)


def _delete(side: Side) -> None:
    job = side.leaving.pop()
    retention.mark_deleted(side.conn, [job])
    for _ in retention.delete_rows(side.conn, job):
        pass


#: What each process does over and over.
TURNS: dict[str, Work] = {
    "turn of the sweep": _sweep,
    "turn of the publisher": lambda side: side.relay.publish_due(side.conn),
    "heartbeat": _heartbeat,
    "controls after a gap": lambda side: workers.job_controls(side.conn, None),
}
