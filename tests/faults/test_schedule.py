"""Messages sent for hours and days later: they outlive everything, run on time, and not before.

Time is made to pass in the rows: a message that is due in a second was sent long ago.
"""

import statistics
from collections.abc import Callable
from datetime import timedelta

import pytest

import callboard
from tests.faults.rig.scene import ACTORS, TIMEOUT, Scene
from tests.support.workers import wait_until

MODULES = (ACTORS, "tests.faults.rig.scheduling")
HOUR, DAY = 3_600_000, 86_400_000
#: Milliseconds; the last is beyond what 32 bits hold.
DELAYS = [2 * HOUR, 3 * DAY, 60 * DAY]
#: Seconds after its time in which a message runs.
ON_TIME = 1.0


def due(on: Scene, job: int) -> dict[int, float]:
    """Seconds until each waiting message of a job is to be published, by its item."""
    waiting = (
        "SELECT item, extract(epoch FROM due_at - now())::float8 FROM callboard.outbox WHERE job_id = %s"
    )
    return dict(on.sql(waiting, job))


def pass_time(on: Scene, job: int, seconds: float) -> None:
    """Let all that waits be due so many seconds sooner."""
    on.sql(
        "UPDATE callboard.outbox SET due_at = due_at - make_interval(secs => %s) WHERE job_id = %s",
        seconds,
        job,
    )


def soon(on: Scene, job: int, item: int) -> None:
    """Let time pass until an item is due in a second and a half."""
    pass_time(on, job, due(on, job)[item] - 1.5)


def late(on: Scene, job: int, item: int, due_at: float) -> float:
    """Seconds from when an item was due to when it began."""
    assert wait_until(lambda: on.ledger.runs(job)[item] > 0, TIMEOUT)
    ((began,),) = on.ledger.conn.execute(
        "SELECT extract(epoch FROM began)::float8 FROM runs WHERE job = %s AND item = %s", (job, item)
    )
    return float(began) - due_at


def restart_everything(on: Scene) -> None:
    for worker in on.workers:
        worker.kill()
    on.node.stop()
    on.server.stop()
    on.server.start()
    on.node.start()
    for worker in on.workers:
        worker.start()


def standing(on: Scene, actor: str) -> int:
    ((job,),) = on.sql("SELECT id FROM callboard.jobs WHERE actor = %s AND standing_on IS NOT NULL", actor)
    return int(job)


def send_plainly(on: Scene) -> tuple[int, list[int]]:
    for delay in DELAYS:
        on.broker.get_actor("work").send_with_options(args=(delay,), delay=delay)
    return standing(on, "work"), [0, 1, 2]


def send_by_timedelta(on: Scene) -> tuple[int, list[int]]:
    with callboard.job("by timedelta") as job:
        for delay in DELAYS:
            on.broker.get_actor("work").send_with_options(args=(1,), delay=timedelta(milliseconds=delay))
    return job.id, [0, 1, 2]


def send_from_an_actor(on: Scene) -> tuple[int, list[int]]:
    job = on.submit("plans", [{"number": 1, "delays": DELAYS}])
    on.until(job, lambda status: status["succeeded"] == 1)
    return job.id, [1, 2, 3]


@pytest.mark.parametrize("send", [send_plainly, send_by_timedelta, send_from_an_actor])
def test_what_is_sent_for_days_later_survives_everything_and_runs_on_time(
    send: Callable[[Scene], tuple[int, list[int]]], on: Scene
) -> None:
    on.worker(modules=MODULES)
    job, items = send(on)
    waiting = due(on, job)
    for item, delay in zip(items, DELAYS, strict=True):
        assert delay / 1000 - TIMEOUT < waiting[item] <= delay / 1000
    restart_everything(on)
    left = due(on, job)
    assert all(waiting[item] - TIMEOUT < left[item] < waiting[item] for item in items)
    assert on.depth() == 0
    delays = []
    for done, item in enumerate(items):
        soon(on, job, item)
        ((due_at,),) = on.sql(
            "SELECT extract(epoch FROM due_at)::float8 FROM callboard.outbox WHERE job_id = %s AND item = %s",
            job, item,
        )  # fmt: skip
        delays.append(late(on, job, item, due_at))
        ran = on.ledger.runs(job)
        assert [ran[one] for one in items] == [1] * (done + 1) + [0] * (len(items) - done - 1)
    assert min(delays) >= 0
    assert statistics.median(delays) < ON_TIME  # one of them may have met a busy machine
    assert wait_until(lambda: due(on, job) == {}, TIMEOUT)
    on.prove_true()
    print(f"late by {', '.join(f'{seconds:.2f} s' for seconds in delays)}")


def test_a_job_that_starts_in_days_survives_everything_and_starts_on_time(on: Scene) -> None:
    on.worker()
    job = on.submit("work", [{"number": n} for n in range(20)], delay="60d")
    restart_everything(on)
    assert on.status(job)["pending"] == 20
    on.sql("UPDATE callboard.jobs SET not_before = now() + interval '1.5 s' WHERE id = %s", job.id)
    ((starts,),) = on.sql(
        "SELECT extract(epoch FROM not_before)::float8 FROM callboard.jobs WHERE id = %s", job.id
    )
    assert 0 <= late(on, job.id, 0, starts) < ON_TIME
    on.prove(job, total=20)
