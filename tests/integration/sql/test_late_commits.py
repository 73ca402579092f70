"""Two transactions on one job, of which the one that began first commits last."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from callboard.sql.pool import Conn, connect
from callboard.sql.writes import actions, claims, sweep
from callboard.sql.writes.requests import Requester
from tests.support.databases import waiting
from tests.support.jobs import make_job, record
from tests.support.workers import wait_until

BY = Requester("python", "somebody")
Step = Callable[[Conn, int], object]

ADDS: dict[str, Step] = {
    "postpone": lambda c, job: claims.postpone(c, job, 0, 1, "work"),
    "republish": lambda c, job: sweep.republish(c, job, [(0, 1)]),
}
CHANGES: dict[str, tuple[Step, Step, str]] = {
    "resume": (lambda c, job: actions.pause(c, job, BY), lambda c, job: actions.resume(c, job, BY), "NOT held"),
    "pause": (lambda *_: None, lambda c, job: actions.pause(c, job, BY), "held"),
    "limit": (lambda *_: None, lambda c, job: actions.limit(c, job, BY, {"concurrency": 1}), "limited"),
    "cancel": (lambda *_: None, lambda c, job: actions.cancel(c, job, BY), "held OR over"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("add", ADDS)
def test_the_first_turn_of_a_queue_is_as_its_job_is(add: str, change: str, conn: Conn, database_url: str) -> None:
    """A message that a stock producer sent has no turn yet. It gets one while its job is changed."""
    job = make_job(conn, 1)
    conn.execute("DELETE FROM callboard.turns")
    before, step, expected = CHANGES[change]
    before(conn, job)
    with ThreadPoolExecutor(1) as pool, connect(database_url) as first:

        def run() -> None:
            with connect(database_url) as other:
                step(other, job)

        with first.transaction():
            ADDS[add](first, job)
            changing = pool.submit(run)
            assert wait_until(lambda: waiting(database_url) == 1 or changing.done(), 300)
        changing.result(300)
    turns = conn.execute(f"SELECT {expected} FROM callboard.turns WHERE job_id = %s".encode(), (job,))
    assert turns.fetchall() == [(True,)]


def test_updated_at_never_steps_back(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 2)
    with connect(database_url) as early, early.transaction():
        early.execute("SELECT now()")  # its time
        record(conn, job, {"succeeded": [0]})
        between = updated_at(conn, job)
        record(early, job, {"succeeded": [1]})
    assert updated_at(conn, job) > between


def updated_at(conn: Conn, job: int) -> Any:
    row = conn.execute("SELECT updated_at FROM callboard.jobs WHERE id = %s", (job,)).fetchone()
    assert row is not None
    return row[0]
