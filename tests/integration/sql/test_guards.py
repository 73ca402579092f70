"""What a statement waited for has changed: it does what its guard says of the row as it is then, not as it was when it
began. Each is tried with the joins that the planner may choose.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import Event, NewItem, OutcomeState, Outgoing, PublishClaim, Retry, Running
from callboard.sql.statements import statement, with_timings
from callboard.sql.writes import actions, jobs, lanes, outcomes, publishing, retry_action, sweep
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.databases import waits
from tests.support.jobs import ARGS, BAD, claim_outbox, make_job, record, run
from tests.support.workers import wait_until

BY = Requester("python", "somebody")
Step = Callable[[Conn], Any]
JOINS = {
    "as it comes": "SET enable_hashjoin = on",
    "row by row": "SET enable_hashjoin = off; SET enable_mergejoin = off",
    "set by set": "SET enable_nestloop = off; SET enable_mergejoin = off",
}


class Scene:
    """A database, and how a statement joins."""

    def __init__(self, url: str, conn: Conn, joins: str) -> None:
        self.url = url
        self.conn = conn
        self._joins = joins

    def after(self, first: Step, second: Step) -> Any:
        """What `second` gives, which waits for `first` and goes on when that is committed."""
        with connect(self.url) as behind, ThreadPoolExecutor(1) as pool:
            behind.execute(self._joins)
            with self.conn.transaction():
                first(self.conn)
                late = pool.submit(second, behind)
                assert wait_until(lambda: waits(self.url), 300)
            return late.result(300)

    def beside(self, first: Step, second: Step) -> Any:
        """What `second` gives, which passes by what `first` has locked and not committed."""
        with connect(self.url) as other:
            other.execute(self._joins)
            with self.conn.transaction():
                first(self.conn)
                return second(other)

    def one(self, query: str) -> tuple[Any, ...] | None:
        """The only row of a query; None: it gives none."""
        rows = self.conn.execute(query).fetchall()
        assert len(rows) < 2
        return rows[0] if rows else None

    @property
    def drift(self) -> Any:
        """What a recount finds."""
        return queries.run(self.conn, queries.verify())["drift"]


@pytest.fixture(params=JOINS)
def scene(request: pytest.FixtureRequest, database_url: str) -> Iterator[Scene]:
    with connect(database_url) as conn:
        yield Scene(database_url, conn, JOINS[request.param])


def ends(job: int, state: OutcomeState, attempt: int = 1, *, item: int = 0, **given: Any) -> Step:
    """What a flush does: an item has ended an attempt."""
    now = time.monotonic()
    failure = None if state == "succeeded" else BAD
    again = Retry(0.0) if state == "retrying" else None
    event = Event(job, item, attempt, state, 0.1, now, 1, failure, again, **given)
    return lambda conn: outcomes.record(conn, [event], now)


def parks(job: int, attempt: int = 1) -> Step:
    """What Parking does, in one statement: so it may wait for the item, and not in the one before."""
    given = {"job": [job], "item": [0], "attempt": [attempt]}
    return lambda conn: conn.execute(statement("park"), given)


def waiting_for(query: str, parameters: dict[str, Any]) -> Step:
    """A statement that leaves what others have in hand, made to wait for it: it looks at the row again in either case.
    Gives how many rows it found.
    """
    text: Any = statement(query).replace("SKIP LOCKED", "")
    return lambda conn: conn.execute(text, with_timings(parameters)).rowcount


def retries(job: int, state: str, items: list[int] | None) -> Step:
    """The part of a retry that gives items another attempt, made to wait as above. Gives the counts that it returns."""
    given = {"job": job, "states": [state], "items": items, "error": None}
    text: Any = statement("retry_ended_items").replace("SKIP LOCKED", "")
    return lambda conn: conn.execute(text, given).fetchone()


OUTBOX = "SELECT attempt, in_turn, claimed_until IS NOT NULL FROM callboard.outbox"
ITEM = "SELECT state::text, attempt FROM callboard.items"


def test_an_outcome_after_the_parking_of_a_retry(scene: Scene) -> None:
    """It was `retrying` when the flush began, and is `waiting`: counted down once."""
    job = make_job(scene.conn, 1)
    record(scene.conn, job, {"retrying": [0]}, delay=0.0)
    told = scene.after(parks(job, 2), ends(job, "succeeded", 2))
    assert [one.state for one in told] == ["completed"]
    assert scene.one("SELECT retrying, succeeded FROM callboard.jobs") == (0, 1)
    assert scene.drift == []


def test_a_parking_after_the_outcome(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    scene.after(ends(job, "succeeded"), parks(job))
    assert scene.one(OUTBOX) is None
    assert scene.drift == []


def test_a_parking_after_another_attempt(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    scene.after(ends(job, "retrying"), parks(job))
    assert scene.one(OUTBOX) == (2, False, False)
    assert scene.one(ITEM) == ("retrying", 2)
    assert scene.drift == []


def test_an_outcome_after_the_next_attempt(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    assert scene.after(ends(job, "retrying"), ends(job, "succeeded", result="1")) == []
    assert scene.one(ITEM) == ("retrying", 2)
    assert scene.one("SELECT FROM callboard.results") is None
    assert scene.drift == []


def test_an_outcome_after_its_retry_by_hand(scene: Scene) -> None:
    """A copy of the message ends when its item has another attempt."""
    job = make_job(scene.conn, 2)
    record(scene.conn, job, {"failed": [0]})
    assert scene.after(lambda c: retry_action.retry(c, job, BY, RetrySelection()), ends(job, "succeeded")) == []
    assert scene.one("SELECT state::text, attempt FROM callboard.items WHERE item = 0") == ("waiting", 2)
    assert scene.drift == []


def child_of(job: int) -> NewItem:
    return NewItem(job, "work", "default", "m", ARGS, None, 5)


def test_children_of_an_outcome_after_another(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    said = ends(job, "succeeded", children=(child_of(job),))
    assert scene.after(ends(job, "failed"), said) == []
    assert scene.one(ITEM) == ("failed", 1)
    assert scene.drift == []


def test_children_of_two_outcomes_at_once_have_their_own_numbers(scene: Scene) -> None:
    job = make_job(scene.conn, 2)
    scene.after(
        ends(job, "succeeded", children=(child_of(job),)), ends(job, "succeeded", item=1, children=(child_of(job),))
    )
    assert [row[0] for row in scene.conn.execute("SELECT item FROM callboard.items ORDER BY 1")] == [0, 1, 2, 3]
    assert scene.one("SELECT total, succeeded FROM callboard.jobs") == (4, 2)
    assert scene.drift == []


def test_a_failure_after_another_is_one_too_many(scene: Scene) -> None:
    job = make_job(scene.conn, 9)
    actions.limit(scene.conn, job, BY, {"max_failures": 1})
    (told,) = scene.after(ends(job, "failed"), ends(job, "failed", item=1))
    assert told.stopping
    assert scene.one("SELECT failed, reason FROM callboard.jobs") == (2, "2 failed, 0 succeeded, and max_failures is 1")
    assert scene.drift == []


def test_the_last_outcome_after_the_one_before_it_ends_the_job(scene: Scene) -> None:
    job = make_job(scene.conn, 2)
    (told,) = scene.after(ends(job, "failed"), ends(job, "succeeded", item=1))
    assert told.state == "completed"
    assert scene.drift == []


def test_what_is_in_hand_beside_its_outcome(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    scene.beside(ends(job, "succeeded"), lambda c: outcomes.report_running(c, 1, [Running(job, 0, 1, 1.0, "a step")]))
    assert scene.one("SELECT FROM callboard.running") is None


def test_what_is_in_hand_beside_its_next_attempt(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    scene.beside(ends(job, "retrying"), lambda c: outcomes.report_running(c, 1, [Running(job, 0, 1, 1.0, "a step")]))
    assert scene.one("SELECT FROM callboard.running") is None


def test_where_an_attempt_hangs_after_its_row_is_anothers(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    run(scene.conn, job, [0], worker=1)
    scene.after(
        lambda c: c.execute("UPDATE callboard.running SET worker = 2"),
        lambda c: outcomes.report_running(c, 1, [hung(job)]),
    )
    assert scene.one("SELECT worker, place FROM callboard.running") == (2, None)


def test_where_an_attempt_hangs_after_its_worker_was_taken_for_dead(scene: Scene) -> None:
    """It runs elsewhere by now, and its row would keep it from that."""
    job = make_job(scene.conn, 1)
    run(scene.conn, job, [0], worker=1)
    scene.conn.execute("DELETE FROM callboard.running")
    outcomes.report_running(scene.conn, 1, [hung(job)])
    assert scene.one("SELECT FROM callboard.running") is None


def hung(job: int) -> Running:
    """Where its first item hangs."""
    return Running(job, 0, 1, 1.0, None, None, "a.py:1", "…")


def claimed(conn: Conn, job: int) -> list[Outgoing]:
    """The message of a retry, claimed."""
    record(conn, job, {"retrying": [0]}, delay=0.0)
    return claim_outbox(conn, 1)


@pytest.mark.parametrize("then", ["succeeded", "failed", "retrying"])
def test_a_message_that_is_settled_after_its_outcome(then: OutcomeState, scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    out = claimed(scene.conn, job)
    scene.after(ends(job, then, 2), lambda c: publishing.confirm_outbox(c, out))
    assert scene.one(OUTBOX) == ((3, False, False) if then == "retrying" else None)
    assert scene.one(ITEM) == (then, 3 if then == "retrying" else 2)
    assert scene.drift == []


def test_a_message_that_is_settled_after_it_was_parked(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    out = claimed(scene.conn, job)
    scene.after(parks(job, 2), lambda c: publishing.confirm_outbox(c, out))
    assert scene.one(OUTBOX) == (2, True, False)
    assert scene.one(ITEM) == ("waiting", 2)
    assert scene.drift == []


def test_an_outcome_after_its_message_is_settled(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    out = claimed(scene.conn, job)
    scene.after(lambda c: publishing.confirm_outbox(c, out), ends(job, "retrying", 2))
    assert scene.one(OUTBOX) == (3, False, False)
    assert scene.one("SELECT retrying, retries FROM callboard.jobs") == (1, 2)
    assert scene.drift == []


def rows_of(out: Sequence[Outgoing]) -> dict[str, Any]:
    return {"id": [m.outbox for m in out], "attempt": [m.attempt for m in out], "pause": 60.0}


@pytest.mark.parametrize("copies", [1, 2])
def test_a_message_that_is_given_back_after_its_outcome(copies: int, scene: Scene) -> None:
    """The row is that of the next attempt."""
    job = make_job(scene.conn, 1)
    out = claimed(scene.conn, job)
    out = [*out, replace(out[0], attempt=7)][:copies]
    assert scene.after(ends(job, "retrying", 2), waiting_for("release_outbox", rows_of(out))) == 0
    assert scene.one(OUTBOX + " WHERE due_at <= now()") == (3, False, False)


def test_a_message_that_is_given_back_after_it_was_settled(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    out = claimed(scene.conn, job)
    assert scene.after(lambda c: publishing.confirm_outbox(c, out), waiting_for("release_outbox", rows_of(out))) == 0
    assert scene.one(OUTBOX) is None
    assert scene.drift == []


def failed(conn: Conn) -> int:
    """A job one item of which failed; the other is queued."""
    job = make_job(conn, 2)
    record(conn, job, {"failed": [0]})
    return job


@pytest.mark.parametrize("items", [None, [0]])
def test_two_retries_at_once_give_one_attempt(items: list[int] | None, scene: Scene) -> None:
    job = failed(scene.conn)
    second = scene.after(lambda c: retry_action.retry(c, job, BY, RetrySelection()), retries(job, "failed", items))
    assert second == (0,) * 7
    assert scene.one("SELECT state::text, attempt FROM callboard.items WHERE item = 0") == ("waiting", 2)
    assert scene.drift == []


def test_a_retry_after_a_retry_that_failed_again(scene: Scene) -> None:
    """The attempt that it chose is not the last any more."""
    job = failed(scene.conn)

    def again(conn: Conn) -> None:
        retry_action.retry(conn, job, BY, RetrySelection())
        ends(job, "failed", 2)(conn)

    assert scene.after(again, retries(job, "failed", None)) == (0,) * 7
    assert scene.one("SELECT state::text, attempt FROM callboard.items WHERE item = 0") == ("failed", 2)
    assert scene.drift == []


def test_two_retries_at_once_of_what_was_cancelled(scene: Scene) -> None:
    """Its attempt stays, so that it waits again is told by its state alone."""
    job = make_job(scene.conn, 2)
    actions.cancel(scene.conn, job, BY)
    scene.conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 h'")
    jobs.close_stopped(scene.conn)
    retry_action.retry(scene.conn, job, BY, RetrySelection(items=[0]))
    assert scene.one("SELECT cancelled FROM callboard.jobs") == (1,)
    second = scene.after(
        lambda c: retry_action.retry(c, job, BY, RetrySelection(items=[1])), retries(job, "cancelled", [1])
    )
    assert second == (0,) * 7
    assert scene.drift == []


def laned(conn: Conn) -> PublishClaim:
    """The claim of a job whose item is in a lane."""
    job = make_job(conn, 1, published=0)
    actions.limit(conn, job, BY, {"concurrency_by": "0=1"})
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    return claim


@pytest.mark.parametrize("then", ["succeeded", "retrying"])
def test_an_item_that_is_set_aside_after_its_outcome(then: OutcomeState, scene: Scene) -> None:
    """Sent by a publisher before, whose claim lapsed."""
    claim = laned(scene.conn)
    aside = scene.after(ends(claim.job, then), lambda c: lanes.move_to_outbox(c, claim, 0, 1, [(0, "a")]))
    assert aside == 0
    assert scene.one(OUTBOX) == (None if then == "succeeded" else (2, False, False))
    assert scene.drift == []


def test_two_publishers_of_a_lane_claim_a_message_once(scene: Scene) -> None:
    claim = laned(scene.conn)
    lanes.move_to_outbox(scene.conn, claim, 0, 1, [(0, "a")])
    given = with_timings({"job": claim.job, "width": 1, "lanes": None, "limit": 10, "bytes": 1_000_000})
    second = waiting_for("claim_lanes", given)
    found: list[Any] = []

    def first(conn: Conn) -> None:
        found.extend(conn.execute(statement("claim_lanes"), given))

    assert scene.after(first, second) == 0
    assert len(found) == 1


def test_a_lane_is_claimed_after_its_message_became_that_of_a_retry(scene: Scene) -> None:
    claim = laned(scene.conn)
    lanes.move_to_outbox(scene.conn, claim, 0, 1, [(0, "a")])
    given = with_timings({"job": claim.job, "width": 1, "lanes": None, "limit": 10, "bytes": 1_000_000})
    late = ends(claim.job, "retrying")

    def first(conn: Conn) -> None:
        late(conn)
        conn.execute("UPDATE callboard.outbox SET due_at = now() + interval '1 h'")

    assert scene.after(first, waiting_for("claim_lanes", given)) == 0


def test_an_item_that_is_sent_again_after_its_outcome(scene: Scene) -> None:
    job = make_job(scene.conn, 1)
    assert scene.beside(ends(job, "succeeded"), lambda c: sweep.republish(c, job, [(0, 1)])) == 0
    assert scene.one(OUTBOX) is None
