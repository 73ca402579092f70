"""Reads on a real database: what they tell is what was written, in both colours, and cheap."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from psycopg import AsyncConnection

from callboard.middleware.submission.item_encoding import key_text, key_texts
from callboard.sql.pool import Conn, connect, connection_options
from callboard.sql.reads import job_view, queries
from callboard.sql.reads.job_filter import JobFilter, parse_search
from callboard.sql.rows import Failure, Running, WorkerInfo
from callboard.sql.statements import statement, with_timings
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import actions, claims, outcomes, publishing, retry_action, sends, submission, sweep, workers
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.jobs import (
    ARGS,
    BAD,
    MIXED,
    age,
    cancel,
    claim_outbox,
    make_job,
    make_mixed_job,
    make_staged,
    make_worker,
    publish,
    record,
    run,
    send,
    status,
)


def counts(conn: Conn, job: int) -> dict[str, int]:
    """The job's counts by state."""
    found = queries.run(conn, queries.job(job))
    assert found is not None
    return {state: found[state] for state in ITEM_STATES}


def listed(conn: Conn, job: int, state: str | None) -> list[int]:
    """The job's items in a state, over pages of seven."""
    found: list[int] = []
    after: int | None = -1
    while after is not None:
        rows, after = queries.run(conn, queries.items(job, state=state, after=after, limit=7))
        assert all(state in (None, row["state"]) for row in rows)
        found += [row["item"] for row in rows]
    return found


def stalled(conn: Conn, job: int) -> str | None:
    """The reason of a job's standstill."""
    found = queries.run(conn, queries.job(job))
    assert found is not None
    reason: str | None = found["stalled"]
    for flag in (True, False):  # the lists agree
        listed, _ = queries.run(conn, queries.jobs(JobFilter(stalled=flag), limit=100))
        assert (job in {one["id"] for one in listed}) == ((reason is not None) == flag)
    return reason


def test_a_job_is_told_in_its_parts(conn: Conn) -> None:
    job = make_mixed_job(conn)
    assert counts(conn, job) == MIXED
    found = queries.run(conn, queries.job(job))
    assert found is not None
    assert found["progress"] == 0.3
    assert found["retries"] == 3
    assert found["rate"] > 0
    assert found["eta"]
    assert found["stalled"] is None
    assert found["metadata"] == {"a": 1}


def test_there_is_no_job_nobody_made_and_none_of_another_tenant(conn: Conn) -> None:
    job = make_job(conn, 1, tenant="a")
    assert queries.run(conn, queries.job(job + 1)) is None
    assert queries.run(conn, queries.job(job, tenant="b")) is None
    assert queries.run(conn, queries.job(job, tenant="a"))


def test_both_colours_give_the_same(conn: Conn, database_url: str) -> None:
    job = make_mixed_job(conn)

    async def ask() -> object:
        async with await AsyncConnection.connect(database_url, **connection_options()) as connection:
            return await queries.arun(connection, queries.items(job))

    assert asyncio.run(ask()) == queries.run(conn, queries.items(job))


@pytest.mark.parametrize("state", ITEM_STATES)
def test_the_items_in_a_state_are_as_many_as_the_job_says(conn: Conn, state: str) -> None:
    job = make_mixed_job(conn)
    found = listed(conn, job, state)
    assert len(found) == len(set(found)) == MIXED[state]
    assert found == sorted(found)


def test_every_item_is_listed_once_in_order(conn: Conn) -> None:
    assert listed(conn, make_mixed_job(conn), None) == list(range(100))


def test_what_is_open_in_a_stopped_job_is_cancelled(conn: Conn) -> None:
    job = make_mixed_job(conn)
    cancel(conn, job)
    gone = ("pending", "queued", "running", "retrying")
    assert counts(conn, job) == {**MIXED, **dict.fromkeys(gone, 0), "cancelled": 70}
    assert listed(conn, job, "cancelled") == list(range(30, 100))
    assert not any(listed(conn, job, state) for state in gone)


def test_an_item_in_the_outbox_is_pending_until_it_is_published(conn: Conn) -> None:
    job = make_job(conn, 2, sealed=False)
    send(conn, job, 2)
    assert listed(conn, job, "pending") == [2]
    assert counts(conn, job)["pending"] == 1
    publishing.confirm_outbox(conn, claim_outbox(conn, 10))
    assert listed(conn, job, "queued") == [0, 1, 2]
    assert counts(conn, job)["queued"] == 3


def test_the_items_of_a_job_that_is_still_stored_are_pending(conn: Conn) -> None:
    job = submission.create_job(
        conn, name="again", key=None, tenant="", actor="work", queue="default", metadata={}, created_by=None, held=True
    ).job  # fmt: skip
    submission.store_chunk(conn, job, 0, [(b"{}", None)] * 2, keyed=False)
    assert listed(conn, job, "pending") == [0, 1]
    assert counts(conn, job)["pending"] == 2


def test_an_item_tells_its_arguments_result_and_attempts(conn: Conn) -> None:
    job = make_mixed_job(conn)
    good, bad = queries.run(conn, queries.item(job, 7)), queries.run(conn, queries.item(job, 20))
    assert good is not None
    assert bad is not None
    assert (good["args"], good["kwargs"], good["result"], good["error"]) == ([7], {}, {"x": 1}, None)
    assert bad["error"] == {"kind": "failed", "type": "ValueError", "message": BAD.message, "place": BAD.place}
    (attempt,) = queries.run(conn, queries.attempts(job, 20))
    assert attempt["traceback"] == BAD.traceback
    assert not attempt["retried"]
    assert queries.run(conn, queries.item(job, 100)) is None


def test_what_is_not_json_or_too_long_is_told_as_text(conn: Conn) -> None:
    job = make_job(conn, 0, sealed=False)
    nan = json.dumps({"args": [float("nan")], "kwargs": {}}).encode()
    long = json.dumps({"args": ["x" * 10_000], "kwargs": {}}).encode()
    submission.store_chunk(conn, job, 0, [(b"\x80\x04pickled", None), (nan, None), (long, None)], keyed=False)
    rows, _ = queries.run(conn, queries.items(job))
    assert [row["args"] for row in rows] == [None, None, None]
    assert rows[0]["args_text"].endswith("pickled")
    assert "NaN" in rows[1]["args_text"]
    assert len(rows[2]["args_text"]) == queries.LIST_CHARACTERS
    whole = queries.run(conn, queries.item(job, 2))
    assert whole is not None
    assert whole["args"] == ["x" * 10_000]


def test_jobs_come_in_pages_the_newest_first(conn: Conn) -> None:
    made = [make_job(conn, 1, name=f"Job {n}") for n in range(5)]
    first, following = queries.run(conn, queries.jobs(limit=3))
    second, end = queries.run(conn, queries.jobs(limit=3, before=following))
    assert [job["id"] for job in first + second] == made[::-1]
    assert end is None


def test_stages_take_no_room_of_a_page(conn: Conn) -> None:
    made = [make_staged(conn)[0] for _ in range(3)]
    page, following = queries.run(conn, queries.jobs(limit=2))
    assert ([job["id"] for job in page], following) == (made[:0:-1], made[1])


FOUND = {
    '"% of a_b"': "mixed-case", "name:100 name:A_": "mixed-case", "tenant:t": "mixed-case",
    r"name:b\c": "mixed-case", "name:1_0": "", '"100%of"': "", r"name:\\c": "",
    "actor:other": "staged mixed-case", "state:pending tenant:t": "mixed-case", "state:paused": "",
    "state:cancelled state:failed": "stopped", "key:k": "keyed", "key:k tenant:t": "",
    "metadata.customer:17": "keyed stopped", "metadata.customer:17 metadata.shop:berlin": "keyed",
    "metadata.customer:1": "", "metadata.deep:{}": "", "since:1h until:1h": "", "until:1h": "stopped",
    "since:1h state:cancelled": "", "ended:24h": "", "ended:3d": "stopped", "is:ended": "stopped",
    "is:failing": "staged stopped", "is:failing is:open": "staged", "not:failing is:ended": "",
    "is:stalled": "quiet", "is:stalled tenant:t": "", "not:stalled name:e": "staged keyed stopped mixed-case",
    "is:standing": "work", "is:open not:standing": "quiet staged keyed mixed-case", "is:open is:ended": "",
}  # fmt: skip


def test_jobs_are_found_by_all_that_is_given(conn: Conn) -> None:
    make_job(conn, 1, name=r"100 % of A_B\c (mixed-case)", actor="other", tenant="t")
    stopped = make_job(conn, 1, name="stopped")
    record(conn, stopped, {"failed": [0]})
    conn.execute(
        "UPDATE callboard.jobs SET state = 'cancelled', created_at = now() - interval '2 days',"
        """ finished_at = now() - interval '2 days', metadata = '{"customer": "17"}' WHERE id = %s""",
        (stopped,),
    )
    keyed = make_job(conn, 1, name="keyed")
    conn.execute(
        """UPDATE callboard.jobs SET key = 'k', metadata = '{"customer": 17, "shop": "berlin", "deep": {"a": 1}}'"""
        " WHERE id = %s",
        (keyed,),
    )
    sends.standing_job(conn, "work", "default")
    parent, (first, _) = make_staged(conn)
    conn.execute("UPDATE callboard.jobs SET name = 'staged' WHERE id = %s", (parent,))
    conn.execute("UPDATE callboard.jobs SET actor = 'other' WHERE id = %s", (first,))
    age(conn, make_job(conn, 1, name="quiet", actor="nobody has it", published=0), 60)
    for words, names in FOUND.items():
        page, following = queries.run(conn, queries.jobs(parse_search(words)))
        assert [job["name"].partition("(")[2].strip(")") or job["name"] for job in page] == names.split(), words
        assert following is None
    conn.execute("UPDATE callboard.jobs SET actor = 'work' WHERE id = %s", (first,))
    page, _ = queries.run(conn, queries.jobs(JobFilter(actor="work")))
    assert [job["name"] for job in page] == ["staged", "work", "keyed", "stopped"]  # with two stages of it, once


def test_a_page_of_stalled_jobs_is_full_as_long_as_there_are_more(conn: Conn) -> None:
    made = [make_job(conn, 1, actor="nobody has it", published=0) for _ in range(5)]
    for job in made[:1] + made[2:]:
        age(conn, job, 60)
    found, before, pages = list[int](), None, 0
    while before is not None or not pages:
        page, before = queries.run(conn, queries.jobs(JobFilter(stalled=True), before=before, limit=2))
        found += [job["id"] for job in page]
        pages += 1
    assert (found, pages) == ([made[n] for n in (4, 3, 2, 0)], 2)
    assert queries.run(conn, queries.job_counts())["stalled"] == 4


def test_errors_are_grouped_with_an_example(conn: Conn) -> None:
    job = make_mixed_job(conn)
    timeout = Failure("timed_out", "TimeLimitExceeded", "too long")
    record(conn, job, {"failed": [50]}, failure=timeout)
    first, second = queries.run(conn, queries.errors(job))
    assert (first["type"], first["count"], first["failed"], first["item"]) == ("ValueError", 8, 5, 20)
    assert (second["kind"], second["count"]) == ("timed_out", 1)
    assert len({first["id"], second["id"]}) == 2


def test_a_group_of_errors_is_found_by_its_id_with_its_items_and_a_traceback(conn: Conn) -> None:
    job, other = make_mixed_job(conn), make_mixed_job(conn)
    record(conn, job, {"failed": [50, 51]}, failure=Failure("failed", "shop.Full", "no", "a.py:1 in b", "Trace 2", 7))
    record(conn, job, {"retrying": [52]}, failure=Failure("failed", "shop.Full", "no", "a.py:1 in b", "Trace 3", 7))
    bad, full = queries.run(conn, queries.errors(job))
    found = queries.run(conn, queries.error(job, full["id"]))
    assert found == {**full, "attempt": 1, "traceback": "Trace 2", "traceback_size": 7}
    assert queries.run(conn, queries.error(other, full["id"])) is None
    assert queries.run(conn, queries.error(job, "shop.Full")) is None

    def numbers(**given: Any) -> list[int]:
        return [item["item"] for item in queries.run(conn, queries.items(job, **given))[0]]

    assert [numbers(error=one) for one in (bad["id"], full["id"], "Full", "shop.Full", "full", "")] == [
        [*range(20, 25)], [50, 51], [50, 51], [50, 51], [], [],
    ]  # fmt: skip
    assert numbers(error=full["id"], state="failed", after=50) == [51]
    assert numbers(error=full["id"], state="retrying") == []
    assert numbers(error=full["id"], keys=["k"]) == []


def test_an_item_is_found_by_its_key(conn: Conn) -> None:
    job = make_job(conn, 0, sealed=False)
    keys = ["a", key_text("1"), key_text(1), key_text("x" * 2_000)]
    submission.store_chunk(conn, job, 0, [(ARGS, key) for key in keys], keyed=True)
    publish(conn, job, 4)
    record(conn, job, {"failed": [0]})
    for given, found in {"a": [0], '"1"': [1], "1": [1, 2], "x" * 2_000: [3], "b": []}.items():
        page, following = queries.run(conn, queries.items(job, keys=key_texts(given)))
        assert ([item["item"] for item in page], following) == (found, None)
    for query, count in (
        (queries.items(job, keys=["a"], state="failed"), 1),
        (queries.items(job, keys=["a"], state="queued"), 0),
        (queries.items(job, keys=["a", "1"], error=BAD.error_type), 1),
        (queries.items(job, keys=["a"], after=0), 0),
    ):
        assert len(queries.run(conn, query)[0]) == count


def test_a_worker_is_alive_stopped_or_dead(conn: Conn) -> None:
    alive, stopped, silent = (make_worker(conn) for _ in range(3))
    workers.stop_worker(conn, stopped)
    conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 hour' WHERE id = %s", (silent,))
    found, _ = queries.run(conn, queries.workers())
    assert {row["id"]: row["state"] for row in found} == {alive: "alive", stopped: "stopped", silent: "dead"}
    dead, _ = queries.run(conn, queries.workers(state="dead"))
    assert [row["id"] for row in dead] == [silent]


def test_the_rate_of_a_job_that_is_over_is_that_of_its_whole_run(conn: Conn) -> None:
    job = make_job(conn, 10)
    record(conn, job, {"succeeded": range(10)})
    conn.execute("UPDATE callboard.jobs SET started_at = finished_at - interval '5 s' WHERE id = %s", (job,))
    found = queries.run(conn, queries.job(job))
    assert found is not None
    assert found["state"] == "completed"
    assert found["rate"] == 2.0
    assert found["eta"] is None


def test_the_rate_of_a_job_that_runs_is_that_of_the_last_half_minute(conn: Conn) -> None:
    job = make_job(conn, 100)
    with conn.transaction():  # at one time
        record(conn, job, {"succeeded": range(60)})
        conn.execute(
            "INSERT INTO callboard.samples (job_id, taken_at, final, failed) VALUES "
            "(%(job)s, now() - interval '1 hour', 0, 0), (%(job)s, now() - interval '20 s', 20, 0),"
            "(%(job)s, now() - interval '10 s', 50, 0)",
            {"job": job},
        )
        found = queries.run(conn, queries.job(job))
    assert found is not None
    assert found["rate"] == pytest.approx(2.0, rel=0.05)


def test_standing_jobs_are_listed_apart(conn: Conn) -> None:
    standing = sends.standing_job(conn, "work", "default")
    job = make_job(conn, 1)
    for wanted, found in ((None, [job, standing]), (True, [standing]), (False, [job])):
        assert [one["id"] for one in queries.run(conn, queries.jobs(JobFilter(standing=wanted)))[0]] == found
    assert [status(conn, one)["standing"] for one in (standing, job)] == [True, False]


def test_only_an_item_that_was_sent_singly_says_when(conn: Conn) -> None:
    job, before = make_job(conn, 1), datetime.now(UTC)
    send(conn, job, 1)
    bulk, sent = queries.run(conn, queries.items(job))[0]
    assert bulk["sent_at"] is None
    assert abs(datetime.fromisoformat(sent["sent_at"]) - before) < timedelta(minutes=10)


def test_a_retried_item_keeps_its_first_start(conn: Conn) -> None:
    job = make_job(conn, 3)
    record(conn, job, {"retrying": [0], "failed": [1]})
    conn.execute("UPDATE callboard.attempts SET started_at = '2026-01-01 12:00Z' WHERE job_id = %s", (job,))
    retry_action.retry(conn, job, Requester("cli"), RetrySelection())
    record(conn, job, {"succeeded": [0, 1]}, attempt=2)
    found, _ = queries.run(conn, queries.items(job))
    assert [item["first_started_at"] for item in found] == ["2026-01-01T12:00:00.000Z"] * 2 + [None]
    assert all(item["started_at"] > "2026-01-01T12:00:00.000Z" for item in found[:2])


def test_the_parts_that_are_done_of_items_in_flight_count(conn: Conn) -> None:
    job, other = make_job(conn, 4), make_job(conn, 1)
    run(conn, other, [0], progress=(1.0, 1.0))
    assert (status(conn, job)["progress"], status(conn, other)["progress"]) == (0.0, 0.99)
    run(conn, job, [0], progress=(3.0, 4.0))
    run(conn, job, [1], progress=(5.0, None))  # of an unknown total
    run(conn, job, [2], progress=(1e-300, 1e300))
    run(conn, job, [3])
    assert status(conn, job)["progress"] == 0.1875
    record(conn, job, {"succeeded": [0]})
    conn.execute("DELETE FROM callboard.running WHERE job_id = %s AND item = 0", (job,))
    assert status(conn, job)["progress"] == 0.25


def test_the_estimate_follows_the_progress_of_a_long_item(conn: Conn) -> None:
    job = make_job(conn, 1)
    conn.execute(
        "UPDATE callboard.jobs SET state = 'running', started_at = now() - interval '100 s' WHERE id = %s", (job,)
    )
    run(conn, job, [0], progress=(20.0, 100.0))
    sweep.sample_jobs(conn)
    sweep.sample_jobs(conn)  # it has not moved, and gets one point
    with conn.transaction():  # at one time
        [(now,)] = conn.execute("SELECT now()")
        conn.execute("UPDATE callboard.samples SET taken_at = now() - interval '20 s'")
        run(conn, job, [0], progress=(40.0, 100.0))
        found = status(conn, job)
    assert (found["progress"], found["rate"]) == (0.4, pytest.approx(0.01, rel=0.05))
    left = datetime.fromisoformat(found["eta"]) - now
    assert left.total_seconds() == pytest.approx(60, abs=5)
    sweep.sample_jobs(conn)
    rows = conn.execute("SELECT final, in_part FROM callboard.samples WHERE job_id = %s ORDER BY taken_at", (job,))
    assert rows.fetchall() == [(0, 0.2), (0, 0.4)]


def test_what_says_something_new_is_not_shown_as_hung(conn: Conn) -> None:
    job = make_job(conn, 2)
    run(conn, job, [0, 1], step="reading")
    outcomes.report_running(conn, 1, [Running(job, n, 1, 1.0, "reading", None, "a.py:1 in f", "…") for n in range(2)])
    assert [one["item"] for one in status(conn, job)["hung"]] == [0, 1]
    run(conn, job, [1], step="writing")
    assert [one["item"] for one in status(conn, job)["hung"]] == [0]


def test_a_job_that_stands_still_says_why(conn: Conn) -> None:
    job = make_job(conn, 3)
    assert stalled(conn, job) is None
    age(conn, job, 42)
    assert stalled(conn, job) == "no worker is alive"
    make_worker(conn, "other")
    assert stalled(conn, job) == "no worker that is alive has the actor work"
    able = make_worker(conn, "work")
    age(conn, job, 42)
    assert stalled(conn, job) == "nothing has moved for 40 s"
    other = make_job(conn, 9)
    run(conn, other, range(8), worker=able)
    age(conn, job, 42)
    assert stalled(conn, job) == "nothing has moved for 40 s; its workers run items of other jobs (8)"
    run(conn, job, [0], worker=able)
    assert stalled(conn, job) is None


def test_a_job_whose_actor_has_moved_names_the_queue_that_nobody_takes(conn: Conn) -> None:
    job = make_job(conn, 3)
    moved = "no worker that is alive has the actor work on the queue default"
    for actors, why in (
        ({"work": "elsewhere"}, moved),
        ({"other": "default"}, moved),  # it takes the queue, and lacks the actor
        ({"work": "elsewhere", "empty": "default"}, "nothing has moved for 40 s"),
    ):
        workers.register_worker(conn, WorkerInfo("backstage", 4711, 8, "7", actors))
        age(conn, job, 42)
        assert stalled(conn, job) == why


def test_a_queue_that_only_an_open_job_has_is_listed(conn: Conn) -> None:
    make_job(conn, 3, published=1)
    workers.register_worker(conn, WorkerInfo("backstage", 4711, 8, "7", {"work": "elsewhere"}))
    assert queries.run(conn, queries.queues()) == [
        {"name": "default", "actors": [], "unserved": [], "pending": 2},
        {"name": "elsewhere", "actors": ["work"], "unserved": [], "pending": 0},
    ]


def test_a_job_of_several_actors_names_the_one_that_nobody_has(conn: Conn) -> None:
    make_worker(conn, "work")
    gone = make_worker(conn, "mail")
    job = make_job(conn, 0, sealed=False)
    send(conn, job, 0, actor="mail")
    publishing.confirm_outbox(conn, claim_outbox(conn, 10))
    age(conn, job, 42)
    assert stalled(conn, job) == "nothing has moved for 40 s"
    workers.stop_worker(conn, gone)
    assert claims.postpone(conn, job, 0, 1, "mail")
    assert stalled(conn, job) == "no worker that is alive has the actor mail"
    make_worker(conn, "mail")
    claims.make_postponed_due(conn)
    assert stalled(conn, job) == "nothing has moved for 40 s"


def test_a_job_that_waits_for_a_retry_says_until_when(conn: Conn) -> None:
    worker = make_worker(conn)
    job = make_job(conn, 1)
    record(conn, job, {"retrying": [0]}, worker=worker)
    age(conn, job, 11)
    assert str(stalled(conn, job)).startswith("waiting for a retry at 2")


def test_a_job_that_waits_for_its_time_or_by_its_rate_says_until_when(conn: Conn) -> None:
    make_worker(conn)
    job = make_job(conn, 3, published=0)
    actions.limit(conn, job, Requester("python"), {"at": "2100-01-31T12:00:00Z"})
    age(conn, job, 11)
    assert stalled(conn, job) == "waiting for its time at 2100-01-31T12:00:00.000Z"
    actions.limit(conn, job, Requester("python"), {"at": None, "rate": "1/h"})
    age(conn, job, 11)
    assert stalled(conn, job) == "nothing has moved for 10 s"  # it may start, and nobody publishes
    publish(conn, job, 1)
    record(conn, job, {"succeeded": [0]})
    age(conn, job, 11)
    assert str(stalled(conn, job)).startswith("its rate is 1/h: the next item starts at 2")


def test_a_job_that_nobody_sealed_says_so_when_nothing_else_moves(conn: Conn) -> None:
    job = make_job(conn, 1, sealed=False)
    make_worker(conn)
    record(conn, job, {"succeeded": [0]})
    age(conn, job, 11)
    assert stalled(conn, job) == job_view.SUBMITTING


def test_a_job_that_is_to_stand_still_is_not_stalled(conn: Conn) -> None:
    """It is paused, over, of plain sends that all ended, or made by a worker just now."""
    paused, ended, standing = make_job(conn, 1), make_job(conn, 1), sends.standing_job(conn, "work", "default")
    actions.pause(conn, paused, Requester("python"))
    record(conn, ended, {"succeeded": [0]})
    for job in (paused, ended, standing):
        age(conn, job, 60)
        assert stalled(conn, job) is None
    parent, [_, second] = make_staged(conn, made=False)
    earlier = "UPDATE callboard.jobs SET finished_at = finished_at - interval '60 s' WHERE parent_id = %s"
    conn.execute(earlier, (parent,))
    age(conn, second, 60)
    assert stalled(conn, parent) is not None
    conn.execute("UPDATE callboard.jobs SET maker = %s WHERE id = %s", (make_worker(conn), second))
    age(conn, second, 60)
    assert stalled(conn, parent) is None


def test_a_stage_that_waits_for_the_one_before_is_not_stalled(conn: Conn) -> None:
    parent, [first, second] = make_staged(conn, made=False)
    conn.execute("UPDATE callboard.jobs SET state = 'running', finished_at = NULL WHERE id = %s", (first,))
    age(conn, second, 60)
    assert [status(conn, job)["stalled"] for job in (parent, second)] == [None, None]


def test_of_a_job_that_is_being_stopped_only_what_a_dead_worker_holds_stands_still(conn: Conn) -> None:
    job, dead = make_job(conn, 3), make_worker(conn)
    conn.execute("UPDATE callboard.jobs SET stopping = 'cancelled' WHERE id = %s", (job,))
    age(conn, job, 60)
    assert stalled(conn, job) is None
    run(conn, job, [0], worker=dead)
    age(conn, job, 60)
    assert stalled(conn, job) is None
    workers.stop_worker(conn, dead)
    make_worker(conn)
    assert stalled(conn, job) == "1 item is held by a dead worker, and will be requeued"


def test_a_recount_of_what_was_written_finds_no_drift(conn: Conn) -> None:
    job = make_mixed_job(conn)
    send_to = make_job(conn, 3, sealed=False)
    send(conn, send_to, 3)
    over = make_mixed_job(conn)
    cancel(conn, over)
    sweep.drop_messages_of_ended_jobs(conn)
    verdict = queries.run(conn, queries.verify())
    assert verdict["drift"] == []
    assert verdict["jobs"] == 3
    publish(conn, job, 100)
    assert queries.run(conn, queries.verify(job))["drift"] == []


def test_a_recount_reports_each_drift_with_both_numbers(conn: Conn) -> None:
    make_mixed_job(conn)
    job = make_mixed_job(conn)
    for counter in ("published", "retrying", "succeeded", "failed", "skipped", "retries", "crashes", "unkept"):
        with conn.transaction(force_rollback=True):
            conn.execute(f"UPDATE callboard.jobs SET {counter} = {counter} + 1 WHERE id = %s", (job,))
            (drift,) = queries.run(conn, queries.verify())["drift"]
        assert (drift["job"], drift["check"], drift["stored"] - drift["counted"]) == (job, counter, 1)


def test_reads_go_through_a_pooler_in_transaction_mode(conn: Conn, pooled_url: str) -> None:
    job = make_mixed_job(conn)
    with connect(pooled_url) as pooled:
        for _ in range(10):
            assert counts(pooled, job) == MIXED
            assert len(listed(pooled, job, "failed")) == 5


def test_the_read_of_a_job_touches_no_item(conn: Conn) -> None:
    job = make_mixed_job(conn)
    query = queries.job(job)
    given = with_timings(query.parameters)
    plan = "\n".join(row[0] for row in conn.execute(b"EXPLAIN " + statement(query.name).encode(), given))
    assert " on items" not in plan
    assert "Seq Scan on jobs" not in plan


def test_a_page_of_items_never_reads_the_whole_table(conn: Conn) -> None:
    job = make_job(conn, 20_000, published=20_000)
    record(conn, job, {"succeeded": range(19_000), "failed": range(19_000, 19_010)}, result=None)
    conn.execute("ANALYZE callboard.items")
    conn.execute("ANALYZE callboard.attempts")
    for state in (None, *ITEM_STATES):
        query = queries.items(job, state=state, limit=10)
        given = with_timings(query.parameters)
        plan = "\n".join(row[0] for row in conn.execute(b"EXPLAIN " + statement(query.name).encode(), given))
        assert "Seq Scan on items" not in plan, state
        assert "items_pkey" in plan, state
