"""How fast stored items get onto RabbitMQ with confirms, against Dramatiq's own confirmed publish, in pairs."""

from collections.abc import Iterator
from statistics import median

from tests.bench.cpu import judged
from tests.bench.rig import Rig
from tests.support.programs import PEAK

CONFIRMED = """
import time
from tests.bench import stock_actors
stock_actors.nothing.send(0)
begun = time.perf_counter()
for number in range({items}):
    stock_actors.nothing.send(number)
print({items} / (time.perf_counter() - begun))
"""

PUBLISHED = """
import time, callboard
from tests.bench import tracked_actors
runtime = tracked_actors.broker.runtime
runtime.publish_job = lambda job: None
first = callboard.submit(tracked_actors.nothing, range(1))
runtime.publisher.start()
while first.status()["pending"]:
    time.sleep(0.1)
runtime.publisher.close(10)
runtime._publisher = None
job = callboard.submit(tracked_actors.nothing, range({items}), chunk={chunk})
begun = time.perf_counter()
runtime.publisher.start()
while job.status()["pending"]:
    time.sleep(0.05)
print({items} / (time.perf_counter() - begun))
"""

STORED = (
    PEAK
    + """
import time, callboard
from tests.bench import tracked_actors
tracked_actors.broker.runtime.publish_job = lambda job: None
begun = time.perf_counter()
callboard.submit(tracked_actors.nothing, (number for number in range({items})))
print({items} / (time.perf_counter() - begun), peak())
"""
)


def table(rig: Rig, items: int, pairs: int) -> Iterator[str]:
    """Rows of a Markdown table: as the publisher chooses how many items a message carries, and with one in each."""
    yield "| items a message | Dramatiq, confirmed /s | Callboard, confirmed items /s | ratios | median | goal 10 |"
    yield "|---|---|---|---|---|---|"
    for chunk in (None, 1):
        measured = [_pair(rig, items, chunk) for _ in range(pairs)]
        ratios = [after / before for before, after in measured]
        before, after = (median(values) for values in zip(*measured, strict=True))
        listed, reached = " ".join(f"{ratio:.1f}" for ratio in ratios), judged(median(ratios) >= 10)
        yield f"| {chunk or 'chosen'} | {before:,.0f} | {after:,.0f} | {listed} | {median(ratios):.1f} | {reached} |"


def _pair(rig: Rig, items: int, chunk: int | None) -> tuple[float, float]:
    """Messages a second of Dramatiq, and items a second of a job whose actor takes 0.1 ms on 16 threads."""
    before = float(rig.run(CONFIRMED.format(items=items // 10), CONFIRM="1"))
    with rig.announced("nothing", 16, mean_seconds=0.0001):
        return before, float(rig.run(PUBLISHED.format(items=items, chunk=chunk)))


def submitting(rig: Rig, items: int) -> str:
    """What submitting very many items takes."""
    rate, memory = (float(number) for number in rig.run(STORED.format(items=items)).split())
    return f"{items:,} items from a generator: {rate:,.0f} stored a second, {memory:.0f} MiB at most"
