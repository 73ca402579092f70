"""What the last items of a job wait for: nobody waits for items that came in the same message as a slow one."""

from statistics import median

import psycopg

from tests.bench.rig import Rig
from tests.support.workers import wait_until

#: Items of the job with one slow item, where that is, and the seconds that it takes.
FAST_ITEMS, SLOW_ITEM, SLOW_SECONDS = 10_000, 5_000, 20
#: What a job of slow items would take at best on two processes of 8 threads.
IDEAL_SECONDS = 4.0

SUBMIT = """
import callboard
from tests.bench import tracked_actors
print(callboard.submit(tracked_actors.varied, {items}, chunk={chunk}).id)
"""

#: Jobs whose actor was fast until then: what its items do now.
SUDDENLY = (
    ("64 items of 1 s", "[1.0] * 64", 64),
    ("400 items of 0.2 s", "[0.2] * 400", 400),
    ("1,000 fast items, then 64 of 1 s", "[0.0] * 1000 + [1.0] * 64", 1064),
    ("1,000 items, each tenth of 0.1 s", "[0.0, 0.1, *[0.0] * 8] * 100", 1000),
)


def table(rig: Rig, pairs: int) -> list[str]:
    """Rows of two Markdown tables."""
    worker = rig.worker("tracked_actors", 2, CALLBOARD_QUEUE_DEPTH="")
    worker.start()
    try:
        _seconds(rig, "[0.0] * 2000", 1, 2000)  # now the actor is known
        return [*_goals(rig, pairs), "", *_suddenly_slow(rig, pairs)]
    finally:
        worker.kill()  # the slow items would go on


def _goals(rig: Rig, pairs: int) -> list[str]:
    slow = [_seconds(rig, "[1.0] * 64", None, 64) / IDEAL_SECONDS for _ in range(pairs)]
    among = f"[{SLOW_SECONDS}.0 if n == {SLOW_ITEM} else 0.0 for n in range({FAST_ITEMS})]"
    fast: list[float] = []
    for _ in range(pairs):
        alone = _seconds(rig, f"[0.0] * {FAST_ITEMS}", None, FAST_ITEMS)
        fast.append(alone / _seconds(rig, among, None, FAST_ITEMS - 1))
    rows = {
        f"64 items of 1 s, seconds ÷ the ideal {IDEAL_SECONDS:.0f} s": slow,
        f"{FAST_ITEMS:,} fast items with one of {SLOW_SECONDS} s among them: the others' rate ÷ without it": fast,
    }
    return [
        "| two processes of 8 threads | ratios | median |",
        "|---|---|---|",
        *(f"| {what} | {_listed(found)} | {median(found):.2f} |" for what, found in rows.items()),
    ]


def _suddenly_slow(rig: Rig, pairs: int) -> list[str]:
    rows = [
        "| the mean says 0.1 ms, and then come | one item a message, s | chosen, s | later by, ms | median |",
        "|---|---|---|---|---|",
    ]
    for what, items, count in SUDDENLY:
        measured = [[_seconds(rig, items, chunk, count, known=0.0001) for chunk in (1, None)] for _ in range(pairs)]
        later = [1000 * (chosen - singly) for singly, chosen in measured]
        singly, chosen = (median(values) for values in zip(*measured, strict=True))
        listed = " ".join(f"{ms:.0f}" for ms in later)
        rows.append(f"| {what} | {singly:.2f} | {chosen:.2f} | {listed} | {median(later):.0f} |")
    return rows


def _seconds(rig: Rig, items: str, chunk: int | None, succeeded: int, known: float | None = None) -> float:
    """Seconds from the submission of a job until so many of its items succeeded. `known`: the mean of its actor."""
    with psycopg.connect(rig.database_url, autocommit=True) as conn:
        if known is not None:
            conn.execute("UPDATE callboard.actors SET mean_seconds = %s", (known,))
        job = int(rig.run(SUBMIT.format(items=items, chunk=chunk), CALLBOARD_QUEUE_DEPTH=""))

        def seconds() -> float | None:
            row = conn.execute(
                "SELECT extract(epoch FROM updated_at - created_at)::float8 FROM callboard.jobs"
                " WHERE id = %s AND succeeded >= %s",
                (job, succeeded),
            ).fetchone()
            return float(row[0]) if row else None

        wait_until(lambda: seconds() is not None, 120, pause=0.01)
        found = seconds()
    assert found is not None, job
    return found


def _listed(ratios: list[float]) -> str:
    return " ".join(f"{ratio:.2f}" for ratio in ratios)
