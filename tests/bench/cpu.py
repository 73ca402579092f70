"""The CPU time of an item in each program: the sender, the workers, RabbitMQ and PostgreSQL; and what its row costs."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psycopg

from tests.bench.drain import SEND, SUBMIT
from tests.bench.rig import PREFETCH, Rig
from tests.support.workers import wait_until

SENDS = """
from concurrent.futures import ThreadPoolExecutor
from tests.bench import tracked_actors
with ThreadPoolExecutor(16) as pool:
    for sent in pool.map(tracked_actors.nothing.send, range({items})):
        pass
tracked_actors.broker.close()
"""
#: Of whom, and how many items a message carries.
SIDES = {
    "stock Dramatiq": (SEND, 1),
    "tracked, chunk=1": (SUBMIT, 1),
    "tracked, chunk=50": (SUBMIT, 50),
    "tracked, send()": (SENDS, 1),
}
#: Bytes of WAL and of disk, and the share of updates of items that change no index, which a row may cost.
WAL_GOAL, DISK_GOAL, HOT_GOAL = 600, 250, 0.95
USED = """
SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, (
    SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class AS c
    WHERE c.relnamespace = 'callboard'::regnamespace AND c.relkind = 'r'
), n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relid = 'callboard.items'::regclass
"""


class Cost(NamedTuple):
    """Microseconds of CPU time an item: to put it into RabbitMQ, then to work it off; and what its row took."""

    sender: float
    put_rabbitmq: float
    put_postgres: float
    worker: float
    rabbitmq: float
    postgres: float
    wal: float
    disk: float
    hot: float


def table(rig: Rig, items: int, pairs: int) -> Iterator[str]:
    """Rows of a Markdown table: of each side the medians."""
    costs: dict[str, list[Cost]] = {side: [] for side in SIDES}
    for _ in range(pairs):
        for side, measured in costs.items():
            measured.append(_cost(rig, side, items))
    yield "| µs of CPU an item | sender | RabbitMQ | PostgreSQL | worker | RabbitMQ | PostgreSQL | all of the drain |"
    yield "|---|---|---|---|---|---|---|---|"
    for side, measured in costs.items():
        cost = Cost(*map(median, zip(*measured, strict=True)))
        drained = [one.worker + one.rabbitmq + one.postgres for one in measured]
        listed = " ".join(f"{value:.0f}" for value in (*cost[:6], median(drained)))
        yield f"| {side} | {listed.replace(' ', ' | ')} ({', '.join(f'{d:.0f}' for d in drained)}) |"
    yield ""
    yield "| an item's row costs | WAL, bytes (goal 600) | disk, bytes (goal 250) | HOT (goal 95 %) |"
    yield "|---|---|---|---|"
    for side, measured in list(costs.items())[1:]:
        cost = Cost(*map(median, zip(*measured, strict=True)))
        yield (
            f"| {side} | {cost.wal:.0f}, {judged(cost.wal <= WAL_GOAL)}"
            f" | {cost.disk:.0f}, {judged(cost.disk <= DISK_GOAL)}"
            f" | {cost.hot:.1%}, {judged(cost.hot >= HOT_GOAL)} |"
        )


def judged(reached: bool) -> str:
    """What is printed beside a goal."""
    return "reached" if reached else "missed"


def _cost(rig: Rig, side: str, items: int) -> Cost:
    script, chunk = SIDES[side]
    with rig.queue() as channel, psycopg.connect(rig.database_url, autocommit=True) as conn:

        def depth() -> int:
            return int(channel.queue_declare("default", passive=True).method.message_count) * chunk

        def ended() -> int:
            row = conn.execute("SELECT coalesce(sum(succeeded), 0)::int FROM callboard.jobs").fetchone()
            return row[0] if row else 0

        before, stored, begun = ended(), _used(conn), _spent(rig, [])
        asked = _of_children()
        rig.run(script.format(items=items, actor="nothing", chunk=chunk))
        sender = _of_children() - asked
        wait_until(lambda: depth() >= items, 60)
        put = _spent(rig, [])
        worker = rig.worker("stock_actors" if script is SEND else "tracked_actors", 1)
        worker.process.start()
        if script is SEND:
            wait_until(lambda: depth() < items, 60, pause=0.002)
            left, start = min(items, depth() + int(PREFETCH)), _spent(rig, [worker.pid])
            wait_until(lambda: depth() == 0, 600)
        else:
            wait_until(lambda: ended() > before, 60, pause=0.002)
            left, start = before + items - ended(), _spent(rig, [worker.pid])
            wait_until(lambda: ended() == before + items, 600)
        end = _spent(rig, [worker.pid])
        worker.stop()
        used = _used(conn)
    put_rabbitmq, put_postgres = ((b - a) * 1e6 / items for a, b in zip(begun[1:], put[1:], strict=True))
    drained = ((b - a) * 1e6 / left for a, b in zip(start, end, strict=True))
    wal, disk, updates, hot = (after - earlier for after, earlier in zip(used, stored, strict=True))
    shares = (wal / items, disk / items, hot / max(updates, 1))
    return Cost._make([sender * 1e6 / items, put_rabbitmq, put_postgres, *drained, *shares])


def _of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _used(conn: psycopg.Connection[tuple[int, ...]]) -> tuple[int, ...]:
    row = conn.execute(USED).fetchone()
    return tuple(map(int, row or ()))


def _spent(rig: Rig, workers: list[int]) -> tuple[float, float, float]:
    """Seconds of CPU time so far of the workers, RabbitMQ and PostgreSQL."""
    rabbitmq = int((rig.folder / "rabbitmq" / "pid").read_text())
    return sum(map(cpu_seconds, workers)), cpu_seconds(rabbitmq), cpu_seconds(postmaster(rig))


def postmaster(rig: Rig) -> int:
    """The pid of PostgreSQL."""
    return int((rig.folder / "postgres" / "postgres" / "postmaster.pid").read_text().split()[0])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, of its children, and of those that have ended."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended: its parent has its time
        process = Path(f"/proc/{pid}")
        children = [int(c) for path in process.glob("task/*/children") for c in path.read_text().split()]
        own = (process / "stat").read_text().rpartition(")")[2].split()[11:15]
        return sum(map(int, own)) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children))
    return 0.0
