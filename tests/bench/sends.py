"""Plain `send()`: how long one takes and how many a second, with confirms, and how fast workers empty the queue."""

from collections.abc import Iterator, Sequence
from statistics import median

import psycopg

from tests.bench.cpu import SENDS, judged
from tests.bench.drain import compared, untracked
from tests.bench.rig import Rig
from tests.support.workers import wait_until

#: Each thread sends one after the other. A stock broker has a connection for each thread.
SENT = """
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from tests.bench import {module}
def send(count):
    times = []
    {module}.nothing.send(-1)
    for number in range(count):
        begun = time.perf_counter()
        {module}.nothing.send(number)
        times.append(time.perf_counter() - begun)
    return times
with ThreadPoolExecutor({threads}) as pool:
    begun = time.perf_counter()
    times = [one for each in pool.map(send, [{items} // {threads}] * {threads}) for one in each]
    print(len(times) / (time.perf_counter() - begun), median(times) * 1000)
{module}.broker.close()
"""


def table(rig: Rig, items: int, pairs: int) -> Iterator[str]:
    """Rows of Markdown tables."""
    yield "| threads | Dramatiq, confirmed: /s, p50 | tracked: /s, p50 | ratios of rates | of p50 | goal 0.8 |"
    yield "|---|---|---|---|---|---|"
    for threads, count in ((1, items // 10), (16, items // 2)):
        measured = [(_sent(rig, "stock_actors", threads, count), _sent(rig, "tracked_actors", threads, count))
                    for _ in range(pairs)]  # fmt: skip
        rates = [ours[0] / theirs[0] for theirs, ours in measured]
        waits = [theirs[1] / ours[1] for theirs, ours in measured]
        stock, tracked = (
            [median(values) for values in zip(*side, strict=True)] for side in zip(*measured, strict=True)
        )
        yield (
            f"| {threads} | {stock[0]:,.0f}, {stock[1]:.2f} ms | {tracked[0]:,.0f}, {tracked[1]:.2f} ms"
            f" | {_listed(rates)} | {_listed(waits)} | {judged(min(median(rates), median(waits)) >= 0.8)} |"
        )
    yield ""
    yield "| processes | untracked /s | tracked sends /s | ratios | median | goal |"
    yield "|---|---|---|---|---|---|"
    for processes, goal in ((1, 1.5), (2, 1.1)):
        drained = [(untracked(rig, processes, items), _tracked(rig, processes, items)) for _ in range(pairs)]
        cells, ratio = compared(drained)
        yield f"| {processes} | {cells} | {goal}, {judged(ratio >= goal)} |"


def _tracked(rig: Rig, processes: int, items: int) -> float:
    """Items a second, from the start of the first to the end of the last."""
    with psycopg.connect(rig.database_url, autocommit=True) as conn:

        def state() -> tuple[int, int]:
            row = conn.execute(
                "SELECT sum(total)::int, sum(succeeded)::int FROM callboard.jobs"
                " WHERE actor = 'nothing' AND standing_on IS NOT NULL HAVING count(*) > 0"
            ).fetchone()
            return row or (0, 0)

        first = state()[0]
        [(began,)] = conn.execute("SELECT clock_timestamp()")
        rig.run(SENDS.format(items=items))
        worker = rig.worker("tracked_actors", processes)
        worker.process.start()
        wait_until(lambda: state() == (first + items, first + items), 600, pause=0.1)
        worker.stop()
        took = conn.execute(
            "SELECT extract(epoch FROM max(i.finished_at) - min(i.started_at))::float8 FROM callboard.items AS i"
            " JOIN callboard.jobs AS j ON j.id = i.job_id"
            " WHERE j.actor = 'nothing' AND j.standing_on IS NOT NULL AND i.sent_at > %s",
            (began,),
        ).fetchone()
    return items / took[0] if took else 0.0


def _sent(rig: Rig, module: str, threads: int, items: int) -> tuple[float, float]:
    """Sends a second, and the milliseconds of the median one. What is sent is dropped."""
    rate, wait = map(float, rig.run(SENT.format(module=module, threads=threads, items=items), CONFIRM="1").split())
    with rig.queue() as channel:
        channel.queue_purge("default")
    return rate, wait


def _listed(ratios: Sequence[float]) -> str:
    return f"{' '.join(f'{ratio:.2f}' for ratio in ratios)}, median {median(ratios):.2f}"
