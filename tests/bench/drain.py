"""How fast workers empty a full queue, tracked ÷ untracked, in pairs."""

import time
from collections.abc import Sequence
from statistics import median

import psycopg

from tests.bench.rig import Rig
from tests.support.workers import wait_until

SEND = """
from tests.bench import stock_actors
for number in range({items}):
    stock_actors.nothing.send(number)
"""

#: Processes, the tracked actor, items a message (None: as the publisher chooses); the untracked side does nothing, one
#: by one.
SIDES: tuple[tuple[int, str, int | None], ...] = (
    (1, "nothing", None), (2, "nothing", None), (1, "result", None), (2, "result", None),
    (1, "nothing", 1), (2, "nothing", 1), (2, "many", 50),
)  # fmt: skip
#: Items after which an actor's mean is known.
LEARNING_ITEMS = 3_000

SUBMIT = """
import time, callboard
from tests.bench import tracked_actors
job = callboard.submit(tracked_actors.{actor}, {values}, chunk={chunk})
while job.status()["pending"]:
    tracked_actors.broker.runtime.publish_job(job.id)
    time.sleep(0.05)
print(job.id)
"""


def untracked(rig: Rig, processes: int, items: int) -> float:
    """Items a second."""
    rig.run(SEND.format(items=items))
    with rig.queue() as channel:

        def depth() -> int:
            return int(channel.queue_declare("default", passive=True).method.message_count)

        wait_until(lambda: depth() >= items, 60)
        worker = rig.worker("stock_actors", processes)
        worker.process.start()
        wait_until(lambda: depth() < items, 60, pause=0.002)
        left, begun = depth(), time.perf_counter()
        wait_until(lambda: depth() == 0, 600, pause=0.002)
        seconds = time.perf_counter() - begun
        worker.stop()
        channel.queue_purge("default")  # of what it had prefetched: a tracked worker would adopt it
    return left / seconds


def tracked(
    rig: Rig, processes: int, items: int, actor: str = "nothing", chunk: int | None = None, *, values: str = ""
) -> float:
    """Items a second, from the start of the first to the commit of the last. `values`: the items, as Python's text."""
    with rig.announced(actor, 8 * processes):
        job = int(rig.run(SUBMIT.format(actor=actor, values=values or f"range({items})", chunk=chunk)))
    worker = rig.worker("tracked_actors", processes)
    worker.process.start()
    wait_until(lambda: rig.job(job)[0] == "completed", 600, pause=0.1)
    seconds = rig.job(job)[1]
    worker.stop()
    return items / seconds


def learn(rig: Rig, actor: str) -> None:
    """Have a worker tell how long an actor takes."""
    tracked(rig, 1, LEARNING_ITEMS, actor, 1)
    with psycopg.connect(rig.database_url, autocommit=True) as conn:
        known = "SELECT FROM callboard.actors WHERE name = %s AND mean_seconds IS NOT NULL"
        assert conn.execute(known, (actor,)).rowcount, f"no worker told how long {actor} takes"


def table(rig: Rig, items: int, pairs: int) -> list[str]:
    """Rows of a Markdown table."""
    rows = [
        "| processes | actor returns | items a message | untracked /s | tracked /s | ratios | median |",
        "|---|---|---|---|---|---|---|",
    ]
    for actor in {actor for _, actor, chunk in SIDES if chunk is None}:
        learn(rig, actor)
    for processes, actor, chunk in SIDES:
        measured = [
            (untracked(rig, processes, items), tracked(rig, processes, items, actor, chunk)) for _ in range(pairs)
        ]
        returns = "70 bytes" if actor == "result" else "nothing, in batches" if actor == "many" else actor
        rows.append(f"| {processes} | {returns} | {chunk or 'chosen'} | {compared(measured)[0]} |")
    return rows


def compared(measured: Sequence[tuple[float, float]]) -> tuple[str, float]:
    """Four cells about pairs of rates, theirs and ours: the medians, the ratios, and their median; and that again."""
    ratios = [ours / theirs for theirs, ours in measured]
    theirs, ours = (median(values) for values in zip(*measured, strict=True))
    listed = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"{theirs:,.0f} | {ours:,.0f} | {listed} | {median(ratios):.2f}", median(ratios)
