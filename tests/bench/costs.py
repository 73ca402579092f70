"""What transactions of outcomes cost PostgreSQL, by how many each has."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Event
from callboard.sql.writes import outcomes
from tests.bench.rig import Rig
from tests.support.jobs import make_job, make_worker

#: Outcomes in a transaction, and how many such transactions are measured.
SIZES = {1: 1_000, 2: 1_000, 10: 300, 100: 60, 300: 30}
WRITERS, WRITER_SECONDS = 16, 3.0


def table(rig: Rig) -> Iterator[str]:
    """The lines of the tables."""
    with connect(rig.database_url) as conn:
        yield "| outcomes in a transaction | µs of PostgreSQL a transaction | an outcome | WAL bytes an outcome |"
        yield "|---|---|---|---|"
        worker = make_worker(conn)
        for size, count in SIZES.items():
            used, written = transactions(conn, worker, size, count)
            each = used / count * 1e6
            yield f"| {size} | {each:,.0f} | {each / size:,.0f} | {written / count / size:,.0f} |"
        one, many = (writers(rig, conn, worker, jobs) for jobs in (1, WRITERS))
        yield ""
        yield f"{WRITERS} writers of single outcomes: {one:,.0f}/s in one job, {many:,.0f}/s in a job each."


def transactions(conn: Conn, worker: int, size: int, count: int) -> tuple[float, float]:
    """The seconds of processor time and the bytes of WAL of so many transactions."""
    job = make_job(conn, size * count + 1)
    conn.execute("CHECKPOINT")
    pid = conn.info.backend_pid
    used, written = processor(pid), wal(conn)
    for n in range(count):
        record(conn, job, worker, range(n * size, (n + 1) * size))
    return processor(pid) - used, wal(conn) - written


def record(conn: Conn, job: int, worker: int, items: range) -> None:
    now = time.monotonic()
    outcomes.record(conn, [Event(job, item, 1, "succeeded", 0.01, now, worker) for item in items], now)


def writers(rig: Rig, conn: Conn, worker: int, jobs: int) -> float:
    """Transactions of one outcome a second, by many at once, in so many jobs."""
    made = [make_job(conn, 20_000) for _ in range(jobs)]
    end = time.monotonic() + WRITER_SECONDS

    def write(number: int) -> int:
        job, share = made[number % jobs], 20_000 // WRITERS
        with connect(rig.database_url) as own:
            for done in range(share):
                if time.monotonic() > end:
                    return done
                item = number * share + done
                record(own, job, worker, range(item, item + 1))
        return share

    with ThreadPoolExecutor(WRITERS) as pool:
        return sum(pool.map(write, range(WRITERS))) / WRITER_SECONDS


def processor(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wal(conn: Conn) -> float:
    row = conn.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8").fetchone()
    return float(row[0]) if row else 0.0
