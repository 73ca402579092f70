"""The groups of a job's errors: by what they say, bounded, each with an example of an item that failed for good."""

import string
import time
from typing import Any

from callboard.sql import timings
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.rows import Event, Failure, Retry
from callboard.sql.states import AttemptKind
from callboard.sql.writes import outcomes, retry_action
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.jobs import make_job, record


def said(message: str, kind: AttemptKind = "failed") -> Failure:
    return Failure(kind, "app.ApiError", message, "app.py:7 in check")


def groups_of(conn: Conn, job: int) -> list[tuple[Any, ...]]:
    found = queries.run(conn, queries.errors(job))
    return [(g["pattern"], g["failed"], g["retried"], g["item"], g["message"]) for g in found]


def test_errors_of_one_place_are_grouped_by_what_they_say(conn: Conn) -> None:
    job = make_job(conn, 40)
    for item in range(10):
        record(conn, job, {"failed": [item]}, failure=said(f"400 for item {item}"))
    for item in range(10, 30):
        record(conn, job, {"retrying": [item]}, failure=said(f"500 for item {item}"))
    assert groups_of(conn, job) == [
        ("400 for item #", 10, 0, 0, "400 for item 0"),
        ("500 for item #", 0, 20, 10, "500 for item 10"),
    ]


def test_the_example_is_of_an_item_that_failed_for_good(conn: Conn) -> None:
    job = make_job(conn, 10)
    record(conn, job, {"retrying": [0]}, failure=said("row 0 is bad"))
    record(conn, job, {"failed": [1], "retrying": [2]}, failure=said("row 1 is bad"))
    assert groups_of(conn, job) == [("row # is bad", 1, 2, 1, "row 1 is bad")]
    record(conn, job, {"failed": [3]}, failure=said("row 3 is bad"))
    assert groups_of(conn, job) == [("row # is bad", 2, 2, 1, "row 1 is bad")]
    assert retry_action.retry(conn, job, Requester("cli"), RetrySelection(items=[1])) == 1
    assert groups_of(conn, job) == [("row # is bad", 1, 3, 3, "row 3 is bad")]
    assert retry_action.retry(conn, job, Requester("cli"), RetrySelection(items=[3])) == 1
    assert groups_of(conn, job) == [("row # is bad", 0, 4, 3, "row 3 is bad")]
    record(conn, job, {"failed": [1]}, attempt=2, failure=said("row 1 is bad still 5"))
    record(conn, job, {"failed": [3]}, attempt=2, failure=said("row 33 is bad"))
    assert groups_of(conn, job) == [
        ("row # is bad", 1, 4, 3, "row 33 is bad"),
        ("row # is bad still #", 1, 0, 1, "row 1 is bad still 5"),
    ]


def test_a_job_has_a_bounded_number_of_groups(conn: Conn) -> None:
    words = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase]
    job, most = make_job(conn, 400), timings.MAX_ERROR_GROUPS
    now = time.monotonic()
    events = [Event(job, n, 1, "failed", 0.1, now, 1, said(f"no {words[n]}")) for n in range(150)]
    outcomes.record(conn, events[:60], now)  # room for all of them
    assert len(groups_of(conn, job)) == 60
    outcomes.record(conn, events[40:], now)  # some are repetitions, and 40 of the others have room
    found = groups_of(conn, job)
    assert [group[:3] for group in found if group[1] > 1] == [(None, 150 - most, 0)]
    assert len(found) == most + 1
    again = [Event(job, 200 + n, 1, "retrying", 0.1, now, 1, said(f"no {words[n]}"), Retry(60.0)) for n in range(150)]
    outcomes.record(conn, again, now)
    assert sum(group[2] for group in groups_of(conn, job)) == 150
    assert len(groups_of(conn, job)) == most + 1
    # Each is taken from the group that it was counted in.
    assert retry_action.retry(conn, job, Requester("cli"), RetrySelection(items=range(150))) == 150
    assert {group[1] for group in groups_of(conn, job)} == {0}
