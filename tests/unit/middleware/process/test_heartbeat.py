"""When a process looks for work: idle ones take turns."""

from dataclasses import replace
from itertools import pairwise

import pytest

from callboard.middleware.process import heartbeat
from callboard.sql import timings
from callboard.sql.rows import DueWork

NOTHING = DueWork(
    live=1, rank=0, clock=0.0, publish_in=None,
    callbacks=False, stages=False, controls=False, sweep=False, outdated=False, unknown=False,
)  # fmt: skip


def looks(workers: int, seconds: float, began: float) -> list[float]:
    """When so many idle workers look that have all looked at the same time."""
    found = []
    for rank in range(workers):
        now = began
        while now < began + seconds:
            now += heartbeat._turn(replace(NOTHING, live=workers, rank=rank, clock=now))
            found.append(now)
    return sorted(found)


@pytest.mark.parametrize(("workers", "often"), [(1, 5), (2, 4), (3, 4), (10, 4), (12, 4)])
def test_idle_workers_together_look_so_often_a_second(workers: int, often: int) -> None:
    began, period = 1_234.5, workers / often
    found = [at for at in looks(workers, 60.0, began) if began + 2 * period < at < began + 60 - period]
    assert {round(b - a, 3) for a, b in pairwise(found)} == {1 / often}


def test_each_of_many_workers_beats_in_time() -> None:
    """And not all of a thousand at the same time."""
    each = looks(1_000, 30.0, 0.0)
    assert len(each) == pytest.approx(1_000 * 30 / (1.5 * heartbeat.BEAT_SECONDS), rel=0.2)
    assert max(sum(at <= other < at + 0.1 for other in each) for at in (10.0, 15.0, 20.0)) < 100


def test_a_process_that_is_no_worker_looks_too() -> None:
    assert heartbeat._turn(replace(NOTHING, live=0)) <= 2 * timings.SHARED_LOOK_SECONDS
