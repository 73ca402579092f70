"""What workers cost that have nothing to do: statements a second, and CPU time."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from tests.bench.cpu import cpu_seconds, judged, postmaster
from tests.bench.rig import Rig

WORKERS, SECONDS, GOAL = 10, 40, 5.0
#: One line of the log for each statement, with its first line.
LOGGED = re.compile(r"LOG:  (?:statement|execute [^:]*): *\n?(.*)")


def table(rig: Rig) -> Iterator[str]:
    """Rows of a Markdown table, and the statements that are sent most."""
    worker = rig.worker("tracked_actors", WORKERS)
    worker.start()
    time.sleep(15)  # what a worker does once, or more often at first
    log = rig.folder / "postgres" / "postgres.log"
    with _logging(rig.database_url):
        skip, before = log.stat().st_size, [cpu_seconds(worker.pid), cpu_seconds(postmaster(rig))]
        time.sleep(SECONDS)
        after = [cpu_seconds(worker.pid), cpu_seconds(postmaster(rig))]
        written = log.read_bytes()[skip:].decode(errors="replace")
    worker.stop()
    sent = Counter(" ".join(text.split())[:60] for text in LOGGED.findall(written))
    rate = sent.total() / SECONDS
    busy = [(b - a) / SECONDS for a, b in zip(before, after, strict=True)]
    yield f"| idle workers | statements a second (goal {GOAL:.0f}) | CPU of workers | of PostgreSQL |"
    yield "|---|---|---|---|"
    yield f"| {WORKERS} | {rate:.1f}, {judged(rate <= GOAL)} | {busy[0]:.1%} of a core | {busy[1]:.1%} |"
    yield ""
    yield from (f"    {count / SECONDS:.2f}/s {text}" for text, count in sent.most_common(12))


@contextmanager
def _logging(url: str) -> Iterator[None]:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("ALTER SYSTEM SET log_statement = 'all'")
        conn.execute("SELECT pg_reload_conf()")
        yield
        conn.execute("ALTER SYSTEM RESET log_statement")
        conn.execute("SELECT pg_reload_conf()")
