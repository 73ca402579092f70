"""What tracking takes of the time of actors that do something: tracked ÷ untracked, in pairs."""

import time
from collections.abc import Iterator

from tests.bench import drain
from tests.bench.rig import Rig
from tests.support.workers import wait_until

#: Seconds of an item, and items: ten seconds of the threads of both processes.
WORK = ((0.005, 32_000), (0.05, 3_200))
PROCESSES, THREADS = 2, 8
#: What Dramatiq fetches by default. More would leave one process without work at the end.
PREFETCH = str(2 * THREADS)
#: Of the items of a row, those after which the mean is known.
LEARNING = 20

SEND = """
from tests.bench import stock_actors
for _ in range({items}):
    stock_actors.varied.send({seconds})
"""


def untracked(rig: Rig, seconds: float, items: int) -> float:
    """Items a second, from the start of the first to the end of the last."""
    done = rig.folder / "done"
    done.write_bytes(b"")
    rig.run(SEND.format(seconds=seconds, items=items))
    worker = rig.worker("stock_actors", PROCESSES, DONE=str(done), dramatiq_queue_prefetch=PREFETCH)
    worker.process.start()
    wait_until(lambda: done.stat().st_size > 0, 60, pause=0.002)
    begun = time.perf_counter() - seconds
    wait_until(lambda: done.stat().st_size >= items, 600, pause=0.002)
    took = time.perf_counter() - begun
    worker.stop()
    return items / took


def tracked(rig: Rig, seconds: float, items: int) -> float:
    """Items a second, from the start of the first to the commit of the last."""
    return drain.tracked(rig, PROCESSES, items, "varied", values=f"[{seconds}] * {items}")


def table(rig: Rig, pairs: int) -> Iterator[str]:
    """Rows of a Markdown table, each as it is measured."""
    yield f"| an item takes, {PROCESSES * THREADS} threads | untracked /s | tracked /s | ratios | median | goal 0.99 |"
    yield "|---|---|---|---|---|---|"
    for seconds, items in WORK:
        tracked(rig, seconds, items // LEARNING)
        measured = [(untracked(rig, seconds, items), tracked(rig, seconds, items)) for _ in range(pairs)]
        cells, ratio = drain.compared(measured)
        yield f"| {seconds * 1_000:g} ms | {cells} | {'reached' if ratio >= 0.99 else 'missed'} |"
