"""Whole jobs, from the first submission to the last completion, beside what others use for them.

Each peer is installed by pip into an environment of its own, and runs two processes of workers, as Callboard does, that
wait when the job comes. pgqueuer and Procrastinate are told of 1,000 tasks at a time, Celery of one. Each takes more
from its queue at once, or runs more at once, than by default.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

from tests.bench.cpu import judged
from tests.bench.drain import compared, learn
from tests.bench.rig import Rig
from tests.support.workers import wait_until

CELERY = """
import os, sys
from celery import Celery
app = Celery("bench", broker=os.environ["AMQP_URL"], backend="db+" + os.environ["DATABASE_URL"].replace("://", "+psycopg://"))
app.conf.worker_prefetch_multiplier = 200
@app.task(name="nothing")
def nothing(number):
    pass
if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        nothing.delay(number)
"""

PROCRASTINATE = """
import asyncio, os, sys
from procrastinate import App, PsycopgConnector
app = App(connector=PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))
@app.task(name="nothing")
async def nothing(number):
    pass
async def main(items):
    async with app.open_async():
        for first in range(0, items, 1000):
            numbers = range(first, min(first + 1000, items))
            await nothing.batch_defer_async(*[{"number": number} for number in numbers])
if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
"""

PGQUEUER = """
import asyncio, os, sys
import psycopg
from pgqueuer import PgQueuer, Queries
async def make():
    conn = await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"], autocommit=True)
    made = PgQueuer.from_psycopg_connection(conn)
    @made.entrypoint("nothing")
    async def nothing(job):
        pass
    return made
async def main(items):
    app = await make()
    if not items:
        await app.run(batch_size=100)
    queries = app.queries
    for first in range(0, items, 1000):
        numbers = range(first, min(first + 1000, items))
        await queries.enqueue(["nothing"] * len(numbers), [b"%d" % number for number in numbers], [0] * len(numbers))
if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))  # 0: a worker
"""

OURS = """
import callboard
from tests.bench import tracked_actors
callboard.submit(tracked_actors.nothing, range({items}))
"""


class Peer(NamedTuple):
    """`succeeded` is a query for how many tasks have; `share` is the part of the items that it gets: some are slow."""

    packages: tuple[str, ...]
    code: str
    set_up: tuple[str, ...]
    worker: tuple[str, ...]
    processes: int
    succeeded: str
    goal: float
    share: float


PEERS = {
    "pgqueuer": Peer(
        ("pgqueuer==1.6.0", "psycopg[binary]==3.3.9"),
        PGQUEUER,
        ("pgq", "--pg-dsn", "{database}", "install"),
        ("python", "{folder}/app.py", "0"),
        2,
        "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'",
        1,
        1,
    ),
    "Celery, results in PostgreSQL": Peer(
        ("celery==5.7.0", "sqlalchemy==2.1.9", "psycopg[binary]==3.3.9"),
        CELERY,
        (),
        ("celery", "-A", "app", "worker", "-c", "2", "-l", "WARNING"),
        1,
        "SELECT count(*) FROM celery_taskmeta WHERE status = 'SUCCESS'",
        20,
        0.1,
    ),
    "Procrastinate": Peer(
        ("procrastinate==3.10.0", "psycopg[binary]==3.3.9"),
        PROCRASTINATE,
        ("procrastinate", "-a", "app.app", "schema", "--apply"),
        ("procrastinate", "-a", "app.app", "worker", "-c", "16"),
        2,
        "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'",
        20,
        0.1,
    ),
}


def table(rig: Rig, items: int, pairs: int) -> Iterator[str]:
    """Rows of a Markdown table."""
    yield "| | its items | its items /s | ours /s | ratios | median | goal |"
    yield "|---|---|---|---|---|---|---|"
    learn(rig, "nothing")
    for name, peer in PEERS.items():
        folder = rig.folder / name.split(",")[0]
        _install(folder, peer)
        count = int(items * peer.share)
        measured = [(_theirs(rig, folder, peer, count), _ours(rig, items)) for _ in range(pairs)]
        cells, ratio = compared(measured)
        yield f"| {name} | {count:,} | {cells} | {peer.goal}, {judged(ratio >= peer.goal)} |"


def _install(folder: Path, peer: Peer) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin/pip", "install", "-q", *peer.packages], check=True, stderr=subprocess.DEVNULL)
    (folder / "app.py").write_text(peer.code)


def _theirs(rig: Rig, folder: Path, peer: Peer, items: int) -> float:
    """Items a second, in a database of its own."""
    with _database(rig) as url, ExitStack() as stack:
        environment = {**os.environ, **rig.environment, "DATABASE_URL": url, "PGDSN": url, "PYTHONPATH": str(folder)}

        def command(words: tuple[str, ...]) -> list[str]:
            program, *rest = words
            return [str(folder / "bin" / program), *(word.format(database=url, folder=folder) for word in rest)]

        if peer.set_up:
            subprocess.run(command(peer.set_up), env=environment, check=True, capture_output=True)
        for _ in range(peer.processes):
            worker = subprocess.Popen(
                command(peer.worker), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(worker.wait)
            stack.callback(worker.terminate)
        conn = stack.enter_context(psycopg.connect(url, autocommit=True))

        def succeeded() -> int:
            try:
                row = conn.execute(peer.succeeded).fetchone()
            except psycopg.errors.UndefinedTable:  # Celery makes it with the first result
                return 0
            return row[0] if row else 0

        def send(count: int) -> None:
            subprocess.run(
                [folder / "bin/python", folder / "app.py", str(count)], env=environment, check=True, capture_output=True
            )

        send(10)  # its workers are there when these are done
        assert wait_until(lambda: succeeded() == 10, 60), "its workers do nothing"
        begun = time.perf_counter()
        send(items)
        wait_until(lambda: succeeded() == 10 + items, 3600, pause=0.2)
        return items / (time.perf_counter() - begun)


def _ours(rig: Rig, items: int) -> float:
    """Items a second."""
    worker = rig.worker("tracked_actors", 2)
    worker.start()
    begun = time.perf_counter()
    rig.run(OURS.format(items=items))
    with psycopg.connect(rig.database_url, autocommit=True) as conn:
        still = "SELECT FROM callboard.jobs WHERE state <> 'completed' AND standing_on IS NULL LIMIT 1"
        wait_until(lambda: not conn.execute(still).rowcount, 3600, pause=0.2)
    seconds = time.perf_counter() - begun
    worker.stop()
    return items / seconds


@contextmanager
def _database(rig: Rig) -> Iterator[str]:
    """The URL of a database that goes with its block."""
    with psycopg.connect(rig.database_url, autocommit=True) as conn:
        conn.execute("CREATE DATABASE peer")
        try:
            yield rig.database_url.replace("/postgres?", "/peer?")
        finally:
            conn.execute("DROP DATABASE peer WITH (FORCE)")
