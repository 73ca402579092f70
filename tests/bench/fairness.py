"""What a small job waits for beside others: alone and beside a large one, in pairs; and fifty jobs at once."""

from collections.abc import Sequence
from statistics import median

import psycopg

from callboard.sql.pool import connect
from callboard.sql.writes import actions
from callboard.sql.writes.requests import Requester
from tests.bench.rig import Rig
from tests.support.workers import wait_until

WE = Requester("python", "bench")
LARGE = 1_000_000
SMALL = 100
#: Seconds in which all jobs of a contest are stored before the first may start.
AHEAD = 6
#: Items of the large job after which its queue and what workers prefetch are as they stay.
STEADY = 3_000

SUBMIT = """
import callboard
from datetime import datetime, timedelta, UTC
from tests.bench import tracked_actors
at = datetime.now(UTC) + timedelta(seconds={ahead}) if {ahead} else None
for tenant, items in {jobs}:
    print(callboard.submit(tracked_actors.nap, range(items), tenant=tenant, at=at).id)
"""

#: Of jobs: the tenant, and the seconds from when it might start to its end.
ENDS = """
SELECT tenant, extract(epoch FROM finished_at - coalesce(not_before, created_at))::float8
FROM callboard.jobs WHERE id = ANY (%s) AND finished_at IS NOT NULL ORDER BY 2
"""


def table(rig: Rig, pairs: int) -> list[str]:
    """Rows of two Markdown tables."""
    worker = rig.worker("tracked_actors", 2, CALLBOARD_QUEUE_DEPTH="")
    worker.start()
    try:
        return [*_beside(rig, pairs), "", *_contests(rig)]
    finally:
        worker.stop()


def _beside(rig: Rig, pairs: int) -> list[str]:
    (large,) = _submit(rig, [("large", LARGE)])
    with connect(rig.database_url) as conn:
        measured = []
        for _ in range(pairs):
            actions.pause(conn, large, WE)
            wait_until(lambda: _depth(rig) == 0, 60)
            (alone,) = _ends(rig, _submit(rig, [("small", SMALL)]))
            actions.resume(conn, large, WE)
            goal = _succeeded(rig, large) + STEADY
            wait_until(lambda goal=goal: _succeeded(rig, large) >= goal, 60, pause=0.1)  # type: ignore[misc]
            (beside,) = _ends(rig, _submit(rig, [("small", SMALL)]))
            measured.append((alone[1], beside[1]))
        actions.cancel(conn, large, WE)
    wait_until(lambda: _depth(rig) == 0, 60)
    ratios = [beside / alone for alone, beside in measured]
    alone, beside = (median(values) for values in zip(*measured, strict=True))
    listed = " ".join(f"{ratio:.1f}" for ratio in ratios)
    return [
        f"| a job of {SMALL} alone, s | beside one of {LARGE:,} of another tenant, s | ratios | median |",
        "|---|---|---|---|",
        f"| {alone:.2f} | {beside:.2f} | {listed} | {median(ratios):.1f} |",
    ]


def _contests(rig: Rig) -> list[str]:
    each = [(f"tenant {n}", SMALL) for n in range(25)]
    found = {
        "25 jobs of one tenant, and 25 tenants with one": [("many", SMALL)] * 25 + each,
        "49 jobs of one tenant, and another with one": [("many", SMALL)] * 49 + each[:1],
    }
    rows = [
        f"| at once, {SMALL} items each | of the one tenant: first, median, last end, s | of the others | last ÷ all |",
        "|---|---|---|---|",
    ]
    for what, jobs in found.items():
        ends = _ends(rig, _submit(rig, jobs, AHEAD))
        many = [end for tenant, end in ends if tenant == "many"]
        others = [end for tenant, end in ends if tenant != "many"]
        rows.append(f"| {what} | {_spread(many)} | {_spread(others)} | {others[-1] / ends[-1][1]:.2f} |")
    return rows


def _spread(ends: Sequence[float]) -> str:
    return f"{ends[0]:.2f} {median(ends):.2f} {ends[-1]:.2f}"


def _submit(rig: Rig, jobs: Sequence[tuple[str, int]], ahead: int = 0) -> list[int]:
    code = SUBMIT.format(jobs=jobs, ahead=ahead)
    return [int(line) for line in rig.run(code, CALLBOARD_QUEUE_DEPTH="").split()]


def _ends(rig: Rig, jobs: Sequence[int]) -> list[tuple[str, float]]:
    """When each ended, in order."""
    with psycopg.connect(rig.database_url, autocommit=True) as conn:
        wait_until(lambda: conn.execute(ENDS, (list(jobs),)).rowcount == len(jobs), 600, pause=0.1)
        return [(row[0], row[1]) for row in conn.execute(ENDS, (list(jobs),))]


def _succeeded(rig: Rig, job: int) -> int:
    with psycopg.connect(rig.database_url) as conn:
        row = conn.execute("SELECT succeeded FROM callboard.jobs WHERE id = %s", (job,)).fetchone()
    return int(row[0]) if row else 0


def _depth(rig: Rig) -> int:
    with rig.queue() as channel:
        return int(channel.queue_declare("default", passive=True).method.message_count)
