"""What a job may do at most, and when: read from the user's words, and held by what is published and recorded."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from callboard.sql.limits import Limits
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.rows import NewItem
from callboard.sql.writes import actions, claims, jobs, publishing, retry_action, sends, submission, sweep, workers
from callboard.sql.writes.requests import NoSuchJob, Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.jobs import ARGS, claim_outbox, make_job, make_worker, record, send, status
from tests.support.workers import wait_until

ANNA = Requester("python", "anna")


def limited(conn: Conn, items: int, **limits: Any) -> int:
    """A job of which nothing is published, with these limits."""
    job = make_job(conn, items, published=0)
    actions.limit(conn, job, ANNA, limits)
    return job


def publish(conn: Conn, job: int) -> int:
    """What a publisher does in a job's turn; how many it sent."""
    claim = publishing.claim_given_job(conn, job)
    if claim is None:
        return 0
    room = 1_000 if claim.allowed is None else claim.allowed
    again = publishing.claim_in_turn(conn, claim, room)
    publishing.confirm_outbox(conn, again)
    end = min(claim.total, claim.watermark + room - len(again))
    publishing.advance_watermark(conn, claim, watermark=end, published=end - claim.watermark, keep=False)
    return len(again) + end - claim.watermark


# Words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"max_failures": -1}, "max_failures"),
        ({"max_failures": "200%"}, "max_failures"), ({"max_failures": "0%"}, "max_failures"),
        ({"max_failures": "5% of 0"}, "max_failures"), ({"max_failures": True}, "max_failures"),
        ({"max_failures": "many"}, "max_failures"), ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"), ({"concurrency": "5"}, "concurrency"), ({"rate": "0/s"}, "rate"),
        ({"rate": "fast"}, "rate"), ({"rate": "-1/s"}, "rate"), ({"rate": 5}, "rate"),
        ({"priority": "first"}, "priority"), ({"deadline": "soon"}, "deadline"),
        ({"deadline": datetime(2027, 1, 1)}, "deadline"),  # noqa: DTZ001 — without a zone it may be any time
        ({"deadline": timedelta(seconds=-1)}, "deadline"), ({"at": 5}, "at"), ({"at": "2027-01-01T00:00:00"}, "at"),
        ({"deadline": "9999-12-31T23:59:59-12:00"}, "deadline"),
        ({"at": "0001-01-01T00:00:00+12:00"}, "at"), ({"deadline": "9999-01-01T00:00:00Z"}, "deadline"),
        ({"deadline": "9999999d"}, "deadline"), ({"at": "9" * 20 + "d"}, "at"), ({"at": timedelta.max}, "at"),
        ({"at": "2h", "deadline": "1h"}, "deadline must be later than at: 3600s is not later than 7200s"),
        ({"rate": "3000000000/s"}, "rate"), ({"rate": "9" * 400 + "/d"}, "rate"), ({"rate": "0.00001/d"}, "rate"),
    ],
)  # fmt: skip
def test_limits_that_make_no_sense_are_refused_by_name(given: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Limits(**given)


def test_limits_are_columns_and_words() -> None:
    at = datetime.now(UTC).replace(microsecond=0)
    limits = Limits("2.5% of 400", 8, "90/m", -3, "2h", at).counted_from(at)
    columns = limits.columns()
    assert (columns["fail_count"], columns["fail_share"], columns["fail_sample"]) == (None, 0.025, 400)
    assert (columns["concurrency"], columns["rate"], columns["priority"]) == (8, 1.5, -3)
    assert columns["deadline"] == at + timedelta(hours=2)
    words = limits.as_json()
    assert words["at"] == f"{at:%Y-%m-%dT%H:%M:%S}.000Z"
    # What is kept as words reads as the same columns.
    assert Limits.from_json({**words, "of_a_newer_release": 1}).columns()["rate"] == 1.5
    assert Limits("7").columns()["fail_count"] == 7


# Actors that nobody has ---------------------------------------------------------------------------------------------


def test_a_job_waits_for_its_actor_from_when_it_could_run(conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    make_worker(conn, "known")
    plain, paused, later, known = (
        make_job(conn, 2, actor=actor, published=0) for actor in ("new", "new", "new", "known")
    )
    actions.pause(conn, paused, ANNA)
    actions.limit(conn, later, ANNA, {"at": "1h"})
    monkeypatch.setenv("CALLBOARD_ACTOR_WAIT", "forever")
    conn.execute("UPDATE callboard.jobs SET created_at = now() - interval '2 days', control_at = NULL")
    assert jobs.stop_jobs_without_actor(conn) == []
    monkeypatch.setenv("CALLBOARD_ACTOR_WAIT", "36h")
    assert jobs.stop_jobs_without_actor(conn) == [plain]
    found = status(conn, plain)
    assert (found["stopping"], found["cancelled"]) == ("failed", 2)
    assert found["reason"].startswith("no worker announced the actor new in the time that CALLBOARD_ACTOR_WAIT gives")
    assert wait_until(lambda: jobs.close_stopped(conn) == [plain], 300)
    assert retry_action.retry(conn, plain, ANNA, RetrySelection(["cancelled"])) == 2
    assert jobs.stop_jobs_without_actor(conn) == []  # its time begins anew
    assert status(conn, known)["state"] == "pending"


# Failures -----------------------------------------------------------------------------------------------------------


def test_a_job_past_its_failures_stops_with_the_reason(conn: Conn) -> None:
    job = make_job(conn, 20)
    actions.limit(conn, job, ANNA, {"max_failures": 3})
    record(conn, job, {"failed": range(3), "succeeded": range(3, 6)})
    assert status(conn, job)["stopping"] is None
    record(conn, job, {"failed": [6]})
    found = status(conn, job)
    assert (found["stopping"], found["cancelled"]) == ("failed", 13)
    assert found["reason"] == "4 failed, 3 succeeded, and max_failures is 3"
    assert any(control.job == job and control.stopping for control in workers.job_controls(conn, 5))
    assert wait_until(lambda: jobs.close_stopped(conn) == [job], 300)
    assert status(conn, job)["state"] == "failed"
    assert retry_action.retry(conn, job, ANNA, RetrySelection(["failed", "cancelled"])) == 17


def test_a_standing_job_past_its_failures_gives_its_day_to_a_new_one(conn: Conn) -> None:
    """Or no plain send of its actor could be recorded for the rest of the day."""
    job = sends.standing_job(conn, "work", "default")
    for item in range(2):
        send(conn, job, item)
    actions.limit(conn, job, ANNA, {"max_failures": 1})
    record(conn, job, {"failed": [0]})
    assert sends.standing_job(conn, "work", "default") == job
    record(conn, job, {"failed": [1]})
    assert jobs.lock_jobs(conn, [job]) == {job: False}
    assert sends.standing_job(conn, "work", "default") != job


def test_a_share_of_failures_needs_its_sample(conn: Conn) -> None:
    job = make_job(conn, 100)
    actions.limit(conn, job, ANNA, {"max_failures": "10% of 40"})
    record(conn, job, {"failed": range(4), "succeeded": range(4, 39)})
    assert status(conn, job)["stopping"] is None
    record(conn, job, {"succeeded": [39]})
    assert status(conn, job)["stopping"] is None
    record(conn, job, {"failed": [40]})
    assert status(conn, job)["stopping"] == "failed"


@pytest.mark.parametrize(("most", "failing"), [(0, 1), ("0", 4), (3, 4)])
def test_a_job_whose_last_items_pass_its_failures_is_failed(conn: Conn, most: int | str, failing: int) -> None:
    job = make_job(conn, 4)
    actions.limit(conn, job, ANNA, {"max_failures": most})
    record(conn, job, {"succeeded": range(4 - failing)})
    record(conn, job, {"failed": range(4 - failing, 4)})
    found = status(conn, job)
    assert (found["state"], found["stopping"], found["cancelled"]) == ("failed", None, 0)
    assert found["reason"] == f"{failing} failed, {4 - failing} succeeded, and max_failures is {most}"
    assert retry_action.retry(conn, job, ANNA, RetrySelection()) == failing
    record(conn, job, {"succeeded": range(4 - failing, 4)}, attempt=2)
    assert (status(conn, job)["state"], status(conn, job)["reason"]) == ("completed", None)


def test_a_job_that_may_have_no_failure_stops_at_the_first(conn: Conn) -> None:
    job = make_job(conn, 4)
    actions.limit(conn, job, ANNA, {"max_failures": 0})
    record(conn, job, {"retrying": [0]})
    assert status(conn, job)["stopping"] is None
    record(conn, job, {"failed": [0]}, attempt=2)
    assert (status(conn, job)["stopping"], status(conn, job)["cancelled"]) == ("failed", 3)


# Concurrency, rate, order, time -------------------------------------------------------------------------------------


def test_no_more_is_published_than_may_be_in_flight(conn: Conn) -> None:
    job = limited(conn, 50, concurrency=8)
    assert publish(conn, job) == 8
    assert publish(conn, job) == 0
    record(conn, job, {"succeeded": range(3), "retrying": [3]}, delay=0)
    assert claim_outbox(conn, 10) == []  # the retry waits for the job's turn too
    assert publish(conn, job) == 4
    assert status(conn, job)["queued"] == 8
    actions.limit(conn, job, ANNA, {"concurrency": 10})
    assert publish(conn, job) == 2
    actions.limit(conn, job, ANNA, {"concurrency": None})
    assert publish(conn, job) == 37


def test_children_of_a_limited_job_wait_for_its_turn(conn: Conn) -> None:
    job = make_job(conn, 2, sealed=False, published=0)
    actions.limit(conn, job, ANNA, {"concurrency": 1})
    for item in (2, 3):
        send(conn, job, item)
    for done in range(4):
        assert claim_outbox(conn, 10) == []
        assert publish(conn, job) == 1
        assert publish(conn, job) == 0
        record(conn, job, {"succeeded": [2, 3, 0, 1][done : done + 1]})


def test_a_job_without_a_queue_of_its_own_has_that_of_its_first_message(conn: Conn) -> None:
    """What a block of sends made: the queue is asked how much room it has."""
    job = submission.create_job(
        conn, name="block", key=None, tenant="", actor=None, queue=None, metadata={}, created_by=None
    ).job
    actions.limit(conn, job, ANNA, {"concurrency": 1})
    send(conn, job, 0)
    claim = publishing.claim_job(conn)
    assert claim is not None
    assert (claim.job, claim.queue) == (job, "default")


def test_nothing_starts_of_a_job_whose_deadline_has_passed(conn: Conn) -> None:
    """Also before the sweep looks, and of what is being published as it passes."""
    job, other = make_job(conn, 3, published=0), make_job(conn, 3, published=0)
    for one in (job, other):
        send(conn, one, 3)
    claim = publishing.claim_given_job(conn, other)
    assert claim is not None
    for one in (job, other):
        actions.limit(conn, one, ANNA, {"deadline": "2026-01-01T00:00:00Z"})
    assert not publishing.advance_watermark(conn, claim, watermark=1, published=1, keep=True)
    assert publish(conn, job) == 0
    assert claim_outbox(conn, 10) == []
    assert sorted(jobs.stop_overdue_jobs(conn)) == [job, other]
    assert status(conn, job)["cancelled"] == 4


@pytest.mark.parametrize(
    "limit",
    [
        {"concurrency": 1}, {"rate": "1/m"}, {"concurrency_by": "a=1"}, {"at": "1h"},
        {"deadline": "2026-01-01T00:00:00Z"}, {},
    ],
)  # fmt: skip
def test_who_sends_into_a_limited_job_leaves_its_messages_to_the_jobs_turn(conn: Conn, limit: dict[str, Any]) -> None:
    """All but those of a job without limits, which it publishes itself."""
    job = make_job(conn, 0, sealed=False)
    actions.limit(conn, job, ANNA, limit)
    new = [NewItem(job, "work", "default", f"m-{item}", b"{}", None, 0) for item in range(3)]
    added = sends.add_items(conn, new, publishing=True)
    assert [(place[0], place[1] is not None) for place in added if place] == [(n, not limit) for n in range(3)]


@pytest.mark.parametrize(
    ("change", "child", "expected"),
    [
        ("jobs SET name = 'as it was'", False, "joins"),
        ("jobs SET sealed = true", True, "joins"),
        ("jobs SET sealed = true", False, "refused"),
        ("jobs SET stopping = 'cancelled'", True, "refused"),
        ("jobs SET state = 'paused'", False, "waits"),
        ("jobs SET concurrency = 5", False, "waits"),
        ("jobs SET not_before = now() + interval '1 hour'", False, "waits"),
        ("send_leases SET job_id = 0", False, "begins"),
    ],
)
def test_a_send_alone_fares_as_one_among_others(change: str, child: bool, expected: str, conn: Conn) -> None:
    """A statement of its own stores it if it joins a lease."""
    job = make_job(conn, 0, sealed=False)
    new = NewItem(job, "work", "default", "m", b"{}", None, 1_000)
    [first] = sends.add_items(conn, [new], publishing=True)
    assert first
    conn.execute(f"UPDATE callboard.{change}".encode())

    def send(*options: bytes | None) -> list[str]:
        given = [replace(new, options=one) for one in options]
        children = [child] * len(given)
        added = sends.add_items(conn, given, publishing=True, children=children, leases=[first[1] or 0])
        fared = {None: "refused", (True, False): "joins", (False, True): "waits", (False, False): "begins"}
        return [fared[place and (place[1] == first[1], place[1] is None)] for place in added]

    assert send(b"{}") + send(None) + send(None, b"{}") == [expected] * 4
    stored = [0] if expected == "refused" else list(range(5))
    rows = "SELECT item, message_id, args, sent_at FROM callboard.items ORDER BY item"
    sent = datetime.fromtimestamp(1, UTC)
    assert conn.execute(rows).fetchall() == [(item, "m", b"{}", sent) for item in stored]
    options = conn.execute("SELECT options FROM callboard.items ORDER BY item").fetchall()
    assert options == [(one,) for one in (None, b"{}", None, None, b"{}")][: len(stored)]
    waiting = 4 if expected == "waits" else 0
    counted = "SELECT total, published, (SELECT count(*) FROM callboard.outbox) FROM callboard.jobs"
    assert conn.execute(counted).fetchone() == (len(stored), len(stored) - waiting, waiting)


@pytest.mark.parametrize("other", [{"delay": 60.0}, {"published": True}])
def test_a_send_alone_that_its_sender_does_not_publish_joins_no_lease(other: dict[str, Any], conn: Conn) -> None:
    job = make_job(conn, 0, sealed=False)
    new = NewItem(job, "work", "default", "m", b"{}", None, 0)
    [first] = sends.add_items(conn, [new], publishing=True)
    assert first
    leases = [first[1] or 0]
    assert sends.add_items(conn, [replace(new, **other)], publishing=True, leases=leases) == [(1, None)]


def _lost(conn: Conn, job: int) -> None:
    assert sweep.republish(conn, job, [(item, 1) for item in range(3)]) == 3


def _strange(conn: Conn, job: int) -> None:
    """They came to a worker that lacks their actor; another has it, and stops just then."""
    other = make_worker(conn)
    for item in range(3):
        assert claims.postpone(conn, job, item, 1, "work")
    conn.execute("UPDATE callboard.outbox SET due_at = now()")
    workers.stop_worker(conn, other)


@pytest.mark.parametrize("come_back", [_lost, _strange])
@pytest.mark.parametrize("limit", [{"concurrency": 3}, {"rate": "3/s"}])
def test_what_is_published_once_more_is_not_in_its_own_way(
    limit: dict[str, Any], come_back: Callable[[Conn, int], None], conn: Conn
) -> None:
    job = make_job(conn, 10, published=3)
    actions.limit(conn, job, ANNA, limit)
    assert wait_until(lambda: publishing.claim_job(conn) is None, 300)  # whatever the rate gathered
    come_back(conn, job)
    found: list[int] = []

    def claimed() -> bool:
        claim = publishing.claim_job(conn)
        if claim is not None:
            found.extend(out.item for out in publishing.claim_in_turn(conn, claim, claim.allowed or 0))
        return bool(found)

    assert wait_until(claimed, 300)
    assert set(found) <= set(range(3))


def test_no_more_is_published_than_the_rate_allows(conn: Conn) -> None:
    job = limited(conn, 400, rate="50/s")
    began, sent = time.monotonic(), 0
    while sent < 100:
        more = publish(conn, job)
        record(conn, job, {"succeeded": range(sent, sent + more)})
        sent += more
        assert sent <= 1 + (time.monotonic() - began) * 50 + 50
        time.sleep(0.01)
    # Never more than a second's worth at once.
    assert time.monotonic() - began >= 0.9


@pytest.mark.parametrize("rate", ["2147483647/s", "0.001/d"])
def test_the_highest_and_the_lowest_rate_hold_up_nobody(conn: Conn, rate: str) -> None:
    job, other = limited(conn, 5, rate=rate), limited(conn, 5)
    assert wait_until(lambda: publish(conn, job) > 0, 300)
    assert publish(conn, other) == 5


def test_what_a_rate_published_and_nobody_started_holds_it_back(conn: Conn) -> None:
    """Else it would start in one burst when the workers come."""
    job = limited(conn, 400, rate="20/s")
    sent = 0
    for _ in range(100):
        sent += publish(conn, job)
        time.sleep(0.03)
    assert 20 <= sent <= 40


def test_lower_priority_goes_first_and_may_be_changed(conn: Conn) -> None:
    first, second = limited(conn, 5, priority=5), limited(conn, 5)
    claim = publishing.claim_job(conn)
    assert claim is not None
    assert claim.job == second
    publishing.advance_watermark(conn, claim, watermark=0, published=0, keep=False)
    actions.limit(conn, first, ANNA, {"priority": -1})
    claim = publishing.claim_job(conn)
    assert claim is not None
    assert claim.job == first


def test_nothing_is_published_before_its_time(conn: Conn) -> None:
    job = limited(conn, 5, at="1h")
    assert publish(conn, job) == 0
    conn.execute("UPDATE callboard.jobs SET not_before = now() WHERE id = %s", (job,))
    assert publish(conn, job) == 5


def test_a_deadline_that_comes_before_the_start_is_refused_whichever_is_changed(conn: Conn) -> None:
    job = limited(conn, 5, at="2h")
    with pytest.raises(ValueError, match="deadline must be later than at"):
        actions.limit(conn, job, ANNA, {"deadline": "1h"})
    actions.limit(conn, job, ANNA, {"deadline": "3h"})
    with pytest.raises(ValueError, match="deadline must be later than at"):
        actions.limit(conn, job, ANNA, {"at": "4h"})
    actions.limit(conn, job, ANNA, {"at": "4h", "deadline": "5h"})
    assert len(queries.run(conn, queries.actions(job))[0]) == 3


def test_what_waits_in_the_outbox_is_not_published_before_its_jobs_time(conn: Conn) -> None:
    job = make_job(conn, 0, sealed=False)
    actions.limit(conn, job, ANNA, {"at": "1h"})
    send(conn, job, 0)
    assert claim_outbox(conn, 10) == []
    actions.limit(conn, job, ANNA, {"at": None})
    assert len(claim_outbox(conn, 10)) == 1


def test_what_is_late_is_cancelled(conn: Conn) -> None:
    job = limited(conn, 5, deadline=timedelta(hours=1))
    assert jobs.stop_overdue_jobs(conn) == []
    conn.execute("UPDATE callboard.jobs SET deadline = now() WHERE id = %s", (job,))
    assert jobs.stop_overdue_jobs(conn) == [job]
    jobs.close_stopped(conn)
    found = status(conn, job)
    assert (found["state"], found["reason"]) == ("cancelled", "its deadline passed with 5 items to go")
    # Opened again it has no deadline any more.
    assert retry_action.retry(conn, job, ANNA, RetrySelection(["cancelled"])) == 5
    assert jobs.stop_overdue_jobs(conn) == []
    assert "deadline" not in status(conn, job)["limits"]


def test_limits_are_told_and_noted(conn: Conn) -> None:
    job = limited(conn, 5, rate="100/m", concurrency=3)
    actions.limit(conn, job, ANNA, {"concurrency": None})
    actions.limit(conn, job, ANNA, {"concurrency": None})
    assert status(conn, job)["limits"] == {"rate": "100/m"}
    told = queries.run(conn, queries.actions(job))[0]
    assert [action["detail"] for action in told] == [{"concurrency": None}, {"rate": "100/m", "concurrency": 3}]
    with pytest.raises(ValueError, match="no limit 'speed'"):
        actions.limit(conn, job, ANNA, {"speed": 9})
    with pytest.raises(NoSuchJob):
        actions.limit(conn, 5, ANNA, {"rate": None})


def test_what_fails_before_its_publisher_settled_it_is_in_flight_no_more_and_once_only(conn: Conn) -> None:
    """Its row in the outbox is that of the retry by then; it waits for its job's turn no more, and is published."""
    job = make_job(conn, 6)
    record(conn, job, {"failed": range(6)})
    assert retry_action.retry(conn, job, ANNA, RetrySelection()) == 6
    actions.limit(conn, job, ANNA, {"concurrency": 2})
    claim = publishing.claim_given_job(conn, job)
    assert claim is not None
    batch = publishing.claim_in_turn(conn, claim, 2)
    record(conn, job, {"retrying": [0, 1]}, attempt=2)
    publishing.confirm_outbox(conn, batch)
    publishing.advance_watermark(conn, claim, watermark=claim.watermark, published=0, keep=False)
    found = status(conn, job)
    assert (found["pending"], found["queued"], found["retrying"]) == (4, 0, 2)
    assert publish(conn, job) == 2
    assert publish(conn, job) == 0
    assert status(conn, job)["queued"] == 2


def test_a_plain_send_that_fails_before_its_publisher_settled_it_counts_as_published(conn: Conn) -> None:
    job = make_job(conn, 1, sealed=False)
    send(conn, job, 1)
    batch = claim_outbox(conn, 10)
    record(conn, job, {"retrying": [1]})
    publishing.confirm_outbox(conn, batch)
    found = status(conn, job)
    assert (found["pending"], found["queued"], found["retrying"]) == (0, 1, 1)


def test_a_job_made_after_its_deadline_is_stopped_when_its_submission_is_over(conn: Conn) -> None:
    made = submission.create_job(
        conn, name="late", key=None, tenant="", actor=None, queue=None, metadata={}, created_by=None,
        limits=Limits(deadline="2026-01-01T00:00:00Z"),
    )  # fmt: skip
    assert jobs.stop_overdue_jobs(conn) == []
    assert submission.store_chunk(conn, made.job, 0, [(ARGS, None)], keyed=False) == ("stored", 1)
    assert submission.seal_job(conn, made.job)
    assert jobs.stop_overdue_jobs(conn) == [made.job]


def test_a_job_whose_submitter_is_gone_is_stopped_at_its_deadline(conn: Conn) -> None:
    job = make_job(conn, 1, sealed=False)
    conn.execute("UPDATE callboard.jobs SET deadline = created_at, submitting_until = now() WHERE id = %s", (job,))
    assert jobs.stop_overdue_jobs(conn) == [job]
