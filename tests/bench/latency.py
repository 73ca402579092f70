"""How long a single item takes to start, and its end to show in the API, while workers are idle or half busy."""

from collections.abc import Iterator
from statistics import median, quantiles

from tests.bench.cpu import judged
from tests.bench.rig import Rig
from tests.support.webapp import open_app, served
from tests.support.workers import wait_until

#: Eight threads end 400 items of 20 ms a second: half of that.
HALF_LOAD = 200
PROBED = 200
#: Seconds between two looks of who waits for an end.
POLL_SECONDS = 0.005
GOAL_SECONDS = 0.1

LOAD = """
import callboard
from tests.bench import tracked_actors
print(callboard.submit(tracked_actors.nap, range(1_000_000), rate="{rate}/s").id)
"""
#: The item says itself when it ran. It does nothing, so that is both its start and its end.
PROBES = """
import time, callboard, httpx
from tests.bench import tracked_actors
client = httpx.Client(base_url="{address}")
for _ in range({probes}):
    begun = time.time()
    job = callboard.submit(tracked_actors.clock, [0])
    while client.get("/api/v1/jobs/%d" % job.id).json()["state"] != "completed":
        time.sleep({poll})
    seen = time.time()
    ran = next(iter(job.items()))["result"]
    print(ran - begun, seen - ran)
"""


def table(rig: Rig) -> Iterator[str]:
    """Rows of a Markdown table."""
    yield "| workers | submit to start: p50, p99 | goal 100 ms | return to API: p50, p99 | goal 100 ms and a poll |"
    yield "|---|---|---|---|---|"
    worker = rig.worker("tracked_actors", 1)
    with served(open_app(rig.database_url)) as address:
        worker.start()
        yield _row(rig, address, "idle")
        job = int(rig.run(LOAD.format(rate=HALF_LOAD)))
        wait_until(lambda: rig.job(job)[0] == "running", 60)
        yield _row(rig, address, "half busy")
    rig.run(f"import callboard; from tests.bench import tracked_actors; callboard.get({job}).cancel()")
    worker.stop()


def _row(rig: Rig, address: str, load: str) -> str:
    printed = rig.run(PROBES.format(address=address, probes=PROBED, poll=POLL_SECONDS))
    started, seen = zip(*(map(float, line.split()) for line in printed.splitlines()), strict=True)
    last = quantiles(seen, n=100)[98]
    return (
        f"| {load} | {median(started) * 1000:.0f} ms, {quantiles(started, n=100)[98] * 1000:.0f} ms"
        f" | {judged(median(started) <= GOAL_SECONDS)}"
        f" | {median(seen) * 1000:.0f} ms, {last * 1000:.0f} ms | {judged(last <= GOAL_SECONDS + POLL_SECONDS)} |"
    )
