"""What a burden costs ÷ without it: an old snapshot, many writers of one job, the submission, and what waits."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

import psycopg

from callboard.middleware.journal.journal import Entry, Journal
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.process.process import Process
from callboard.middleware.publish.chunking import MAX_CHUNK_ITEMS
from callboard.middleware.rabbitmq.prefetch import wanted_prefetch
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Event, JobControl
from tests.bench.drain import SUBMIT
from tests.bench.rig import Rig
from tests.support.deliveries import make_attempt
from tests.support.jobs import make_job
from tests.support.workers import Worker, wait_until

#: Flushes of two busy workers in ten minutes: each leaves an old version of the row of its job.
OLD_VERSIONS = 60_000
#: Processes that record outcomes, the items of each, and how many a process of 8 threads has in hand at most of a fast
#: actor, where the publisher chooses how many a message carries. While a journal waits for the row of the job, others
#: end, so the next commit has more of them.
WRITERS, WRITER_ITEMS, IN_HAND = 32, 3_000, wanted_prefetch(8, 0.0) * MAX_CHUNK_ITEMS
#: Processes that stand for those.
CLIENTS = 4

#: One transaction a version, as flushes are; each by the place of the last: by the id it would pass all before it.
AGE = """
DO $$ DECLARE place tid := (SELECT ctid FROM callboard.jobs WHERE id = %d); BEGIN
    FOR n IN 1 .. %d LOOP
        UPDATE callboard.jobs SET updated_at = clock_timestamp() WHERE ctid = place RETURNING ctid INTO place;
        COMMIT;
    END LOOP;
END $$
"""
STORED = """
import time, callboard
from tests.bench import tracked_actors
tracked_actors.broker.runtime.publish_job = lambda job: None
begun = time.perf_counter()
job = callboard.submit(tracked_actors.nothing, (number for number in range({items})))
print(job.id, time.perf_counter() - begun)
"""
#: Items that wait to be published, and items that wait for a retry an hour away.
QUEUED = """
INSERT INTO callboard.items (job_id, item, args)
SELECT %(job)s, n, '{"args":[1],"kwargs":{}}' FROM generate_series(0, %(items)s - 1) AS n;
UPDATE callboard.jobs SET total = %(items)s, bulk_end = %(items)s, sealed = true WHERE id = %(job)s
"""
RETRYING = """
INSERT INTO callboard.items (job_id, item, args, state, attempt)
SELECT %(job)s, n, '{"args":[1],"kwargs":{}}', 'retrying', 2 FROM generate_series(0, %(items)s - 1) AS n;
UPDATE callboard.jobs SET total = %(items)s, bulk_end = %(items)s, watermark = %(items)s, published = %(items)s,
    retrying = %(items)s, sealed = true, state = 'running', started_at = now() WHERE id = %(job)s;
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect)
SELECT %(job)s, n, 2, now() + interval '1 hour', false, true FROM generate_series(0, %(items)s - 1) AS n
"""


def table(rig: Rig, items: int, pairs: int) -> Iterator[str]:
    """Rows of a Markdown table, each as it is measured; 250 times `items` wait, and 25 times for a retry."""
    yield "| with ÷ without | with | without | ratios | median | goal |"
    yield "|---|---|---|---|---|---|"
    yield from _snapshot(rig, items, pairs)
    with connect(rig.database_url) as conn:
        measured = [(_written(rig, conn, 1), _written(rig, conn, WRITERS)) for _ in range(pairs)]
        yield _row(f"{WRITERS} writers, items/s: of one job ÷ of a job each", measured, 0.8)
        yield _row(
            f"rows/s: submit of {5 * items:,} items ÷ COPY of the same rows",
            [_stored(rig, conn, 5 * items) for _ in range(pairs)], 0.5,
        )  # fmt: skip
        conn.execute("UPDATE callboard.jobs SET state = 'paused', epoch = epoch + 1 WHERE finished_at IS NULL")
        idle = _memory(rig)
        yield from _waiting(rig, conn, f"{250 * items:,} items queued", QUEUED, 250 * items, idle)
        yield from _waiting(rig, conn, f"{25 * items:,} retries waiting", RETRYING, 25 * items, idle)


def _row(what: str, measured: Iterable[tuple[float, float]], least: float) -> str:
    pairs = list(measured)
    ratios = [burdened / free for burdened, free in pairs]
    burdened, free = (median(values) for values in zip(*pairs, strict=True))
    listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
    said = f"≥ {least}" + ("" if median(ratios) >= least else ": missed")
    return f"| {what} | {burdened:,.0f} | {free:,.0f} | {listed} | {median(ratios):.2f} | {said} |"


# A snapshot of ten minutes ago --------------------------------------------------------------------------------------


def _snapshot(rig: Rig, items: int, pairs: int) -> Iterator[str]:
    measured, dead = [], 0
    for _ in range(pairs):
        free = _drained(rig, items, lambda _: None)
        with psycopg.connect(rig.database_url) as old:
            old.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
            old.execute("SELECT count(*) FROM callboard.jobs")
            measured.append((_drained(rig, items, lambda job: _age(rig, job)), free))
            dead = max(dead, _dead(rig))
    yield _row(f"items/s, a snapshot of ten minutes ago held ({dead:,} dead rows)", measured, 0.9)


def _age(rig: Rig, job: int) -> None:
    with psycopg.connect(rig.database_url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")  # these commits are not what is measured
        conn.execute("SET enable_seqscan = off")  # the plan is made, and kept, when the table has a few pages
        conn.execute((AGE % (job, OLD_VERSIONS)).encode())


def _drained(rig: Rig, items: int, before: Callable[[int], None]) -> float:
    job = int(rig.run(SUBMIT.format(actor="nothing", items=items, chunk=50)))
    before(job)
    worker = rig.worker("tracked_actors", 2)
    worker.process.start()
    wait_until(lambda: rig.job(job)[0] == "completed", 600, pause=0.1)
    worker.stop()
    return items / rig.job(job)[1]


def _dead(rig: Rig) -> int:
    with psycopg.connect(rig.database_url, autocommit=True) as conn:
        conn.execute("SELECT pg_stat_force_next_flush()")
        row = conn.execute("SELECT sum(n_dead_tup)::bigint FROM pg_stat_user_tables").fetchone()
    return int(row[0]) if row else 0


# Writers and rows ---------------------------------------------------------------------------------------------------


@dataclass
class _InHand:
    """What a process has in hand of an actor that takes no time: when outcomes are committed, as many others end."""

    shares: list[tuple[int, int]]  # job and item
    acknowledged: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, process: Process) -> None:
        self.fed, self.journal = 0, Journal(process, self, lambda *_: None)
        self.feed(IN_HAND)

    def feed(self, count: int) -> None:
        for job, item in self.shares[self.fed : self.fed + count]:
            event = Event(job, item, 1, "succeeded", 0.01, time.monotonic(), 1)
            self.journal.add(Entry(make_attempt(job, item), event, dead_letter=False))
        self.fed += count

    def attempts(self) -> list[Attempt]:
        return []

    def expects_more(self, ended: int) -> bool:
        return min(len(self.shares) - self.acknowledged, IN_HAND) > ended

    def typical_seconds(self, _: str) -> float:
        return 0.0

    def apply_controls(self, controls: Sequence[JobControl]) -> None:
        """These jobs simply run."""

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        self.acknowledged += len(entries)
        if self.acknowledged == len(self.shares):
            self.done.set()
        self.feed(len(entries))


def _write(url: str, writers: list[list[tuple[int, int]]], ready: Barrier, ended: Barrier) -> None:
    """Record outcomes by some journals, each with a connection of its own, as so many processes do."""
    process = Process(url, connections=len(writers))
    process.pool.resize(len(writers))
    process.pool.wait()
    inhands = [_InHand(shares) for shares in writers]
    ready.wait()
    for each in inhands:
        each.run(process)
    for each in inhands:
        each.done.wait()
    ended.wait()
    for each in inhands:
        each.journal.close(10)
    process.close()


def _written(rig: Rig, conn: Conn, jobs: int) -> float:
    """Items a second that the journals of `WRITERS` processes record, of as many jobs. It takes `CLIENTS` processes to
    feed them: in one, Python's lock would make them wait for each other.
    """
    made = [make_job(conn, WRITERS * WRITER_ITEMS // jobs) for _ in range(jobs)]
    conn.execute("VACUUM (ANALYZE)")
    spawn = multiprocessing.get_context("spawn")
    ready, ended = spawn.Barrier(CLIENTS + 1), spawn.Barrier(CLIENTS + 1)
    writers = [
        [(made[n % jobs], n // jobs * WRITER_ITEMS + item) for item in range(WRITER_ITEMS)] for n in range(WRITERS)
    ]
    clients = [
        spawn.Process(target=_write, args=(rig.database_url, writers[n::CLIENTS], ready, ended)) for n in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    ready.wait()
    began = time.perf_counter()
    ended.wait()
    took = time.perf_counter() - began
    for client in clients:
        client.join()
    return WRITERS * WRITER_ITEMS / took


def _stored(rig: Rig, conn: Conn, items: int) -> tuple[float, float]:
    """Rows a second of a submission, and of a COPY of the same bytes into a table like it."""
    job, seconds = rig.run(STORED.format(items=items)).split()
    conn.execute("DROP TABLE IF EXISTS copied")
    conn.execute("CREATE TABLE copied (LIKE callboard.items INCLUDING ALL)")
    rows = f"(SELECT job_id, item, args FROM callboard.items WHERE job_id = {int(job)} ORDER BY item)"
    with conn.cursor() as cursor:
        with cursor.copy(f"COPY {rows} TO STDOUT (FORMAT BINARY)".encode()) as out:
            blocks = list(out)
        began = time.perf_counter()
        with cursor.copy("COPY copied (job_id, item, args) FROM STDIN (FORMAT BINARY)") as into:
            for block in blocks:
                into.write(block)
    return items / float(seconds), items / (time.perf_counter() - began)


# Memory -------------------------------------------------------------------------------------------------------------


def _waiting(rig: Rig, conn: Conn, what: str, stored: str, items: int, idle: float) -> Iterator[str]:
    job = store(conn, stored, items)
    used = _memory(rig)
    said = "≤ 1.2" + ("" if used / idle <= 1.2 else ": missed")
    yield f"| MiB of a worker, {what} ÷ idle | {used:.0f} | {idle:.0f} | | {used / idle:.2f} | {said} |"
    conn.execute("UPDATE callboard.jobs SET state = 'paused', epoch = epoch + 1 WHERE id = %s", (job,))


def store(conn: Conn, stored: str, items: int) -> int:
    """Make a job by QUEUED or RETRYING; return its id."""
    job = make_job(conn, 0, actor="nap", sealed=False)
    for statement in stored.split(";"):
        conn.execute(statement.encode(), {"job": job, "items": items})
    return job


def _memory(rig: Rig) -> float:
    """The most MiB that a worker process of 8 threads has had after ten seconds."""
    worker = rig.worker("tracked_actors", 1, CALLBOARD_QUEUE_DEPTH="")
    with _running(worker):
        time.sleep(10)
        return max(_peak(pid) for pid in worker.children())


@contextmanager
def _running(worker: Worker) -> Iterator[None]:
    worker.start()
    try:
        yield
    finally:
        worker.stop()


def _peak(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
