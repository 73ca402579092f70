"""Cancel, pause, resume and retry on running jobs: measured in the actors' own table of runs, not in the counters."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

import callboard
from tests.faults.rig.points import HURRY, MARKS, POINTS, marks
from tests.faults.rig.scene import ACTORS, TIMEOUT, Scene
from tests.support.workers import wait_until

#: Seconds after which nothing starts any more.
HEARD = 1.0


def begun(on: Scene, job: callboard.Job, after: float) -> int:
    """Runs of a job that began after a moment."""
    row = on.ledger.conn.execute(
        "SELECT count(*) FROM runs WHERE job = %s AND began > to_timestamp(%s)", (job.id, after)
    ).fetchone()
    return int(row[0]) if row else 0


def going(on: Scene, count: int, *, processes: int = 2, **item: Any) -> callboard.Job:
    """A job that is well under way on several processes."""
    job = on.submit("work", ({"number": n, "seconds": 0.02, **item} for n in range(count)))
    if not on.workers:
        on.worker(processes=processes)
    on.until(job, lambda status: status["succeeded"] >= 200)
    return job


def still(on: Scene, job: callboard.Job) -> None:
    """Wait until nothing of a job is running any more."""
    on.until(job, lambda status: status["running"] == 0)


def settled(look: Callable[[], Any], seconds: float = 1.0) -> Any:
    """What it gives when it has been the same for a while."""
    last, since = look(), time.monotonic()
    while time.monotonic() - since < seconds:
        now = look()
        if now != last:
            last, since = now, time.monotonic()
        time.sleep(0.1)
    return last


def test_a_cancelled_job_starts_nothing_more_and_ends_with_what_ran(on: Scene) -> None:
    job = going(on, 5_000)
    with on.witness(job) as witness:
        said = time.time()
        assert job.cancel("wrong file")["stopping"] == "cancelled"
        on.until(job, lambda status: status["state"] == "cancelled")
    ended = on.status(job)
    assert ended["reason"] == "wrong file"
    assert ended["stopping"] is None
    # What RabbitMQ holds is dropped on delivery.
    assert wait_until(lambda: on.depth() == 0, TIMEOUT)
    assert begun(on, job, said + HEARD) == 0
    assert begun(on, job, 0) == ended["succeeded"]
    assert ended["succeeded"] + ended["cancelled"] == 5_000
    assert ended["cancelled"] > 1_000
    assert witness.wrong == []
    assert on.left_over(job) == {"running": 0, "outbox": 0}
    assert job.cancel()["state"] == "cancelled"
    assert [action["action"] for action in job.actions()] == ["cancel"]


def test_a_long_item_may_look_and_leave(on: Scene) -> None:
    on.worker()
    job = on.submit("leaves", [{"number": n} for n in range(3)])
    on.until(job, lambda status: status["running"] == 3)
    job.cancel()
    on.until(job, lambda status: status["state"] == "cancelled")
    assert on.status(job)["skipped"] == 3


def test_a_paused_job_starts_nothing_and_goes_on_with_each_item_once(on: Scene) -> None:
    """Over a restart of the workers, the broker and the database."""
    job = going(on, 3_000)
    with on.witness(job) as witness:
        said = time.time()
        assert job.pause()["state"] == "paused"
        settled(lambda: begun(on, job, 0))  # and so, most probably, all that ran is on record
        assert wait_until(lambda: on.depth() == 0, TIMEOUT)
        for worker in on.workers:
            worker.kill()
        on.node.stop()
        on.server.stop()
        on.server.start()
        on.node.start()
        on.worker(processes=2)
        on.until(job, lambda status: status["queued"] == 0)
        time.sleep(1)  # in which a message that is left would start
        assert begun(on, job, said + HEARD) == 0
        assert on.status(job)["state"] == "paused"
        assert job.pause()["state"] == "paused"
        job.resume()
        runs = on.prove(job, total=3_000, witness=witness)
    twice = [item for item, count in runs.items() if count > 1]
    assert len(twice) <= 16  # in the killed workers' hands, if their outcomes were slow
    assert [action["action"] for action in job.actions()] == ["resume", "pause"]


def test_what_was_parked_comes_back_in_order(on: Scene) -> None:
    job = going(on, 1_500, processes=1)
    job.pause()
    still(on, job)
    assert wait_until(lambda: on.depth() == 0, TIMEOUT)
    settled(lambda: on.status(job)["pending"])
    said = time.time()
    job.resume()
    on.prove(job, total=1_500)
    rows = on.ledger.conn.execute(
        "SELECT item FROM runs WHERE job = %s AND began > to_timestamp(%s) ORDER BY began", (job.id, said)
    ).fetchall()
    order = [row[0] for row in rows]
    # Eight threads start them side by side, and on a busy machine one of them may stand still for a moment.
    moved = sorted(abs(place - item) for place, item in enumerate(order, min(order)))
    assert moved[int(len(moved) * 0.95)] < 40, order
    assert len(order) == len(set(order))


def test_a_retry_that_falls_due_waits_for_the_pause_to_end(on: Scene) -> None:
    on.worker()
    job = on.submit("work", [{"number": n, "fate": "retry", "seconds": 1.0} for n in range(8)])
    assert wait_until(lambda: on.ledger.runs(job.id).total() == 8, TIMEOUT)
    job.pause()
    on.until(job, lambda status: status["retrying"] == 8)
    said = time.time()
    time.sleep(1)  # all are due within a tenth of that
    assert begun(on, job, said) == 0
    job.resume()
    on.prove(job, total=8, retries=8)


def test_retried_items_move_their_counts_back_and_twice_pressed_is_once_done(on: Scene) -> None:
    on.worker(processes=2)
    job = on.submit("work", ({"number": n, "fate": "once" if n % 4 == 0 else "succeed"} for n in range(400)))
    on.until(job, lambda status: status["state"] == "completed")
    assert on.status(job)["failed"] == 100
    with on.witness(job, reopened=True) as witness:
        assert job.retry() == 100
        assert job.retry() == 0
        runs = on.prove(job, total=400, retries=100, witness=witness)
    assert all(count == (2 if item % 4 == 0 else 1) for item, count in runs.items())
    assert job.errors()[0]["count"] == 100
    assert job.errors()[0]["failed"] == 0
    assert len(job.actions()) == 1


def test_what_was_cancelled_is_done_after_all(on: Scene) -> None:
    job = going(on, 3_000)
    job.cancel()
    on.until(job, lambda status: status["state"] == "cancelled")
    cancelled = on.status(job)["cancelled"]
    assert job.retry(["cancelled"]) == cancelled
    runs = on.prove(job, total=3_000, timeout=240)
    assert runs.total() == 3_000


def test_chosen_items_of_a_cancelled_job_are_retried_and_the_rest_stays_cancelled(on: Scene) -> None:
    job = on.submit(
        "work",
        ({"number": n, "fate": "once" if n < 40 else "succeed", "seconds": 0.02} for n in range(3_000)),
    )
    on.worker()
    on.until(job, lambda status: status["succeeded"] >= 100)
    job.cancel()
    on.until(job, lambda status: status["state"] == "cancelled")
    before = on.status(job)
    assert before["failed"] == 40
    assert job.retry(error_type="KeyError") == 0
    assert on.status(job)["state"] == "cancelled"
    assert job.retry(error_type="Once") == 40
    on.until(job, lambda status: status["state"] == "completed")
    after = on.status(job)
    assert after["succeeded"] == before["succeeded"] + 40
    assert after["cancelled"] == before["cancelled"]
    assert job.retry(items=[2_990, 2_991]) == 2
    on.until(job, lambda status: status["state"] == "completed")
    assert on.status(job)["cancelled"] == before["cancelled"] - 2
    on.prove_true()


# Killed in the middle -----------------------------------------------------------------------------------------------


def test_workers_killed_while_they_park_and_while_what_was_parked_goes_out_lose_nothing(on: Scene) -> None:
    marked = on.folder / "marks"
    marked.mkdir()
    plan = {POINTS: "parked,parked,sent,sent", MARKS: str(marked), HURRY: "5"}
    job = on.submit("work", ({"number": n, "seconds": 0.02} for n in range(3_000)))
    on.worker(env=plan, modules=(ACTORS, "tests.faults.rig.points"))
    on.until(job, lambda status: status["succeeded"] >= 100)
    with on.witness(job) as witness:
        job.pause()
        on.until(job, lambda _: len(marks(marked)) == 2)
        on.until(job, lambda status: status["queued"] == status["running"] == 0)
        job.resume()
        on.until(job, lambda _: len(marks(marked)) == 4)
        runs = on.prove(job, total=3_000, witness=witness, timeout=240)
    assert [mark.point for mark in marks(marked)] == ["parked", "parked", "sent", "sent"]
    # What was parked and what went out twice ran once; only what a worker had not yet on record may run again.
    assert sum(count - 1 for count in runs.values()) <= 16 * len(marks(marked))


def test_a_job_whose_workers_die_as_it_is_cancelled_is_cancelled(on: Scene) -> None:
    """What they held has no end; it is cancelled, too, when they are missed."""
    job = on.submit("work", ({"number": n, "seconds": 0.5} for n in range(120)))
    on.worker(env={HURRY: "4"}, modules=(ACTORS, "tests.faults.rig.points"))
    on.until(job, lambda status: status["running"] > 0)
    job.cancel()
    on.workers[0].kill()
    on.until(job, lambda status: status["state"] == "cancelled")
    ended = on.status(job)
    assert ended["succeeded"] + ended["cancelled"] == 120
    assert on.left_over(job) == {"running": 0, "outbox": 0}
    assert job.retry(["cancelled"]) == ended["cancelled"]
    on.prove(job, total=120)


def told(on: Scene, job: callboard.Job) -> dict[str, Any]:
    """What the actions on a job change of it."""
    status = on.status(job)
    words = ("state", "stopping", "sealed", "failed", "cancelled", "retries", "limits")
    return {**{word: status[word] for word in words}, "actions": [done["action"] for done in job.actions()]}


#: A `callboard` that dies when it is about to run a statement, in the middle of its transaction.
DIES = """
import os, signal, sys
from callboard.commands.main import main
from callboard.sql.writes import actions, jobs, retry
real = actions.statement
def deadly(name):
    if name == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(name)
actions.statement = jobs.statement = retry.statement = deadly
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("at", "action"),
    [
        ("note_action", "pause"), ("note_action", "resume"), ("note_action", "limit"), ("note_action", "cancel"),
        ("cancel_rest", "retry"), ("retry_ended", "retry"), ("reopen_job", "retry"), ("note_action", "retry"),
    ],
)  # fmt: skip
def test_a_command_killed_in_the_middle_has_done_nothing_and_is_done_by_the_next(
    at: str, action: str, on: Scene
) -> None:
    job = on.submit(
        "work", ({"number": n, "fate": "succeed" if n else "once", "seconds": 0.2} for n in range(400))
    )
    if action == "retry":
        on.worker()
        on.until(job, lambda status: status["failed"] == 1)
        job.cancel()
        on.until(job, lambda status: status["state"] == "cancelled")
    if action == "resume":
        job.pause()
    before = told(on, job)
    command = [sys.executable, "-c", DIES, at, action, str(job.id)]
    if action == "limit":
        command += ["--rate", "10/s"]
    killed = subprocess.run(command, env={**os.environ, **on.environment}, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert told(on, job) == before
    say: dict[str, Callable[[], Any]] = {
        "pause": job.pause, "resume": job.resume, "limit": lambda: job.limit(rate="10/s"), "cancel": job.cancel,
        "retry": job.retry,
    }  # fmt: skip
    say[action]()
    assert [done["action"] for done in job.actions()] == [action, *before["actions"]]
