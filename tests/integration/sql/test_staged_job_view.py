"""Jobs of stages as commands and requests tell them: without workers, by the statements that the product uses."""

import dataclasses
import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from callboard.middleware.callbacks.stage_maker import StageMaker
from callboard.middleware.process.process import Process
from callboard.sql.limits import NO_LIMITS
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import PlannedStage
from callboard.sql.statements import execute
from callboard.sql.writes import actions, jobs, retry_action, stages, submission
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from tests.support.jobs import ARGS, BAD, age, make_staged, make_worker, publish, record, status
from tests.support.programs import Call
from tests.support.webapp import open_app, served
from tests.support.workers import wait_until

ANNA = Requester("python", "anna")


@pytest.fixture
def http(database_url: str) -> Iterator[httpx.Client]:
    """A client of the app."""
    with served(open_app(database_url)) as address, httpx.Client(base_url=address) as client:
        yield client


def test_the_whole_is_the_sum_of_its_stages(conn: Conn) -> None:
    parent, [first, second] = make_staged(conn)
    found = status(conn, parent)
    assert (found["state"], found["total"], found["succeeded"], found["failed"]) == ("running", 18, 9, 2)
    assert (found["pending"], found["queued"]) == (4, 3)
    assert found["progress"] == pytest.approx((1 + 1 / 8) / 2)
    assert found["updated_at"] == status(conn, second)["updated_at"]
    told = [(one["job"], one["name"], one["state"], one["total"]) for one in found["stages"]]
    assert told == [(first, "fetch", "completed", 10), (second, "sum up", "running", 8)]
    assert (status(conn, first)["parent"], status(conn, first)["stages"]) == (parent, [])
    record(conn, second, {"succeeded": range(1, 4)})  # the others wait for the stage's time
    changes = "finished_at = finished_at - interval '1 min', not_before = '2999-01-01Z'"
    conn.execute(f"UPDATE callboard.jobs SET {changes} WHERE parent_id = %s", (parent,))
    age(conn, second, 60)
    assert [status(conn, job)["stalled_until"] for job in (parent, second)] == ["2999-01-01T00:00:00.000Z"] * 2


def test_the_rate_of_a_job_of_stages_that_is_over_is_that_of_its_whole_run(conn: Conn) -> None:
    parent, [first, second] = make_staged(conn)
    publish(conn, second, 8)
    record(conn, second, {"succeeded": range(1, 8)})
    stages.update_parents(conn)
    assert status(conn, parent)["state"] == "completed"
    times = "UPDATE callboard.jobs SET started_at = now() - make_interval(secs => %s), finished_at = now()"
    with conn.transaction():  # one now()
        for job, seconds in ((parent, 9), (first, 9), (second, 2)):
            conn.execute(f"{times} WHERE id = %s", (seconds, job))
    assert status(conn, parent)["rate"] == 2.0  # 18 items in 9 s
    assert status(conn, second)["rate"] == 4.0


def test_a_worker_that_died_leaves_a_stage_to_another(conn: Conn) -> None:
    planned = [PlannedStage("a", "work", "default", None, "stop"), PlannedStage("b", "work", "default", None, "stop")]
    parent, found = stages.create(
        conn, planned, name="n", key=None, tenant="", metadata={}, created_by=None, limits=NO_LIMITS
    )
    first, other = make_worker(conn), make_worker(conn)
    submission.seal_job(conn, found[0].id)
    stages.update_parents(conn)
    assert stages.claim_stage(conn, first, ["play"], []) is None
    held = stages.claim_stage(conn, first, ["work"], [])
    assert held is not None
    assert stages.claim_stage(conn, other, ["work"], []) is None
    assert stages.claim_stage(conn, first, ["work"], [held.job]) is None
    conn.execute("UPDATE callboard.workers SET beat_at = now() - interval '1 h' WHERE id = %s", (first,))
    taken = stages.claim_stage(conn, other, ["work"], [])
    assert taken is not None
    assert taken.job == held.job
    # The one that was taken for dead goes on: it stores nothing, and takes nothing back.
    assert not stages.store_inputs(conn, held, 0, [(b"{}", None)])
    stages.seal_stage(conn, held)
    stages.fail_stage(conn, held, "no", {})
    assert stages.store_inputs(conn, taken, 0, [(b"{}", None)] * 3)
    assert stages.store_inputs(conn, taken, 0, [(b"{}", None)] * 3), "a commit of which nobody knows is said again"
    assert status(conn, held.job)["total"] == 3
    actions.pause(conn, parent, ANNA)
    assert not stages.store_inputs(conn, taken, 3, [(b"{}", None)])
    stages.release_claim(conn, taken)
    assert stages.claim_stage(conn, other, ["work"], []) is None
    actions.resume(conn, parent, ANNA)
    again = stages.claim_stage(conn, first, ["work"], [])
    assert again is not None
    assert again.consumed == 3


def test_no_stage_is_made_of_a_stage_that_is_being_retried(conn: Conn, database_url: str) -> None:
    parent, [_, second] = make_staged(conn, made=False)
    worker = make_worker(conn)
    with connect(database_url) as other, other.transaction():
        execute(other, "lock_stages", parent=parent)
        assert stages.claim_stage(conn, worker, ["work"], []) is None
    retry_action.retry(conn, parent, ANNA, RetrySelection())
    assert stages.claim_stage(conn, worker, ["work"], []) is None
    record(conn, second - 1, {"succeeded": range(8, 10)}, attempt=2)
    assert stages.claim_stage(conn, worker, ["work"], []) is not None


@pytest.fixture
def maker(conn: Conn, database_url: str) -> Iterator[StageMaker]:
    """What makes stages in a worker process, without its heartbeat."""
    process = Process(database_url)
    process.worker = make_worker(conn)
    yield StageMaker(process, lambda _: None, {"work": None})
    process.close()


def ready(conn: Conn) -> int:
    """The second stage of a job, whose turn it is, of nothing."""
    planned = [PlannedStage(name, "work", "default", None, "stop") for name in ("a", "b")]
    _, [first, second] = stages.create(
        conn, planned, name="n", key=None, tenant="", metadata={}, created_by=None, limits=NO_LIMITS
    )
    submission.seal_job(conn, first.id)
    return second.id


def test_all_stages_whose_turn_it_is_are_made_at_once(conn: Conn, maker: StageMaker) -> None:
    """One a look, a hundred small jobs of a few stages would take minutes."""
    made = [ready(conn) for _ in range(4)]
    maker.make_due(conn)
    assert wait_until(lambda: all(status(conn, one)["state"] == "completed" for one in made), 300)


def test_a_stage_whose_thread_did_not_start_is_made_at_the_next_look(
    conn: Conn, maker: StageMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made = ready(conn)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        with pytest.raises(RuntimeError):
            maker.make_due(conn)
    maker.make_due(conn)
    assert wait_until(lambda: status(conn, made)["state"] == "completed", 300)


def test_a_function_that_gives_fewer_items_than_before_fails_the_job(conn: Conn, maker: StageMaker) -> None:
    parent, [first, second] = make_staged(conn, made=False)
    making = stages.claim_stage(conn, maker.process.worker, ["work"], [])
    assert making is not None
    assert stages.store_inputs(conn, making, 0, [(ARGS, None)] * 5)
    maker._run(dataclasses.replace(making, makes="tests.support.makers:two", consumed=5))
    found = status(conn, parent)
    assert found["state"] == "failed"
    assert "gave 2 items where it gave 5 before its worker ended: it must give the same items" in str(found["reason"])
    assert (status(conn, second)["total"], status(conn, first)["state"]) == (5, "completed")


def test_a_stage_that_was_partly_made_goes_on_whole(conn: Conn) -> None:
    """What failed of the stage before is left alone: its results would move what is passed over."""
    parent, [first, second] = make_staged(conn, made=False)
    worker = make_worker(conn)
    making = stages.claim_stage(conn, worker, ["work"], [])
    assert making is not None
    assert stages.store_inputs(conn, making, 0, [(ARGS, None)] * 5)
    publish(conn, second, 3)
    record(conn, second, {"failed": [0], "succeeded": [1]}, worker=worker)
    stages.fail_stage(conn, making, "its items can't be made: KeyError", {"traceback": "Traceback"})
    assert wait_until(lambda: jobs.close_stopped(conn) or status(conn, second)["finished_at"], 300)
    stages.update_parents(conn)
    assert (status(conn, parent)["state"], status(conn, second)["cancelled"]) == ("failed", 3)
    assert retry_action.retry(conn, parent, ANNA, RetrySelection()) == 4
    found = status(conn, second)
    assert (found["state"], found["sealed"], found["pending"], found["succeeded"]) == ("running", False, 4, 1)
    assert status(conn, first)["failed"] == 2
    again = stages.claim_stage(conn, worker, ["work"], [])
    assert again is not None
    assert again.consumed == 5


def test_what_sweeps_leaves_an_open_job_of_stages_alone(conn: Conn) -> None:
    parent, found = stages.create(
        conn, [PlannedStage("a", "work", "default", None, "stop")] * 2, name="n", key="k", tenant="", metadata={},
        created_by=None, limits=NO_LIMITS,
    )  # fmt: skip
    conn.execute("UPDATE callboard.jobs SET submitting_until = now() - interval '1 h' WHERE stage = 0")
    assert jobs.close_jobs(conn) == []
    assert submission.fail_abandoned_submissions(conn) == []
    assert not submission.seal_job(conn, parent)
    assert jobs.lock_jobs(conn, [parent]) == {parent: False}
    conn.execute("UPDATE callboard.jobs SET key = NULL WHERE id = %s", (parent,))
    assert submission.fail_abandoned_submissions(conn) == [found[0].id]
    stages.update_parents(conn)
    assert status(conn, parent)["state"] == "failed"


def test_a_look_waits_for_nobody_who_changes_a_job_of_stages(conn: Conn, database_url: str) -> None:
    """A heartbeat looks, and who retries a million items takes a while."""
    parent, [first, _] = make_staged(conn, made=False)
    conn.execute("UPDATE callboard.jobs SET on_failure = 'stop' WHERE id = %s", (first,))
    conn.execute("INSERT INTO callboard.stage_changes (parent_id) VALUES (%s)", (parent,))
    conn.execute("SET statement_timeout = '5s'")
    with connect(database_url) as other, other.transaction():
        execute(other, "lock_parent", parent=parent)
        stages.update_parents(conn)
        assert status(conn, parent)["finished_at"] is None
    stages.update_parents(conn)
    assert status(conn, parent)["state"] == "failed"


@pytest.mark.parametrize("change", ["stages = stages + 1", "state = 'completed', sealed = true, finished_at = now()"])
def test_verify_finds_a_job_of_stages_that_does_not_fit_them(conn: Conn, change: str) -> None:
    parent, _ = make_staged(conn)
    before = conn.execute("SELECT * FROM callboard.jobs WHERE id = %s", (parent,)).fetchone()
    with conn.transaction(force_rollback=True):
        conn.execute(f"UPDATE callboard.jobs SET {change} WHERE id = %s", (parent,))
        [drift] = queries.run(conn, queries.verify(parent))["drift"]
        assert drift["check"] == ("stages" if "stages" in change else "unended")
    assert before is not None


def test_the_commands_tell_of_stages(call: Call, conn: Conn) -> None:
    parent, [first, second] = make_staged(conn)
    lines = call("status", parent)[1].splitlines()
    assert lines[0].startswith(f"{parent} two running 56.2 % of 18")
    assert [line.split()[:2] for line in lines if line.startswith(("0 ", "1 "))] == [["0", "fetch"], ["1", "sum"]]
    assert "8 succeeded · 2 failed" in "".join(lines)
    listed = json.loads(call("jobs", "--json")[1])["jobs"]
    assert [one["id"] for one in listed] == [parent]
    code, out, err = call("items", parent)
    assert (code, out) == (2, "")
    assert err.endswith(f" has stages with their own items: list those of job {first} (fetch), {second} (sum up)\n")
    assert [one["job"] for one in json.loads(call("items", second, "--json")[1])["items"]] == [second] * 8
    assert call("errors", parent)[1].splitlines()[0].startswith("stage")
    assert "sum up" not in call("jobs")[1]
    assert "is a stage of job" in call("cancel", second)[2]
    assert call("verify", parent)[1].startswith("no drift: 3 jobs")


def test_the_api_tells_of_stages(http: httpx.Client, conn: Conn) -> None:
    parent, [first, second] = make_staged(conn)
    assert [one["id"] for one in http.get("/api/jobs").json()["jobs"]] == [parent]
    assert http.get(f"/api/jobs/{second}").json()["parent"] == parent
    items = http.get(f"/api/jobs/{first}/items?state=failed").json()["items"]
    assert [(one["job"], one["item"]) for one in items] == [(first, 8), (first, 9)]
    refused = http.get(f"/api/jobs/{parent}/items")
    said = f"has stages with their own items: ask for those of job {first} (fetch), {second} (sum up)"
    assert (refused.status_code, said in refused.json()["detail"]) == (400, True)
    [error] = http.get(f"/api/jobs/{parent}/errors").json()["errors"]
    assert (error["job"], error["stage"], error["failed"]) == (first, 0, 2)
    assert http.post(f"/api/jobs/{second}/pause").status_code == 409
    assert http.post(f"/api/jobs/{parent}/pause").json()["state"] == "paused"
    assert {one["state"] for one in http.get(f"/api/jobs/{parent}").json()["stages"]} == {"completed", "paused"}
    assert http.patch(f"/api/jobs/{parent}", json={"concurrency": 2}).status_code == 200
    assert http.get(f"/api/jobs/{second}").json()["limits"] == {"concurrency": 2}
    retried = http.post(f"/api/jobs/{parent}/retry").json()
    # A stage that is opened again while the whole is paused is paused, too.
    assert [one["state"] for one in retried["stages"]] == ["paused", "paused"]
    assert (retried["state"], retried["failed"]) == ("paused", 0)


def test_a_stage_whose_turn_it_just_is_stands_still_for_as_long_as_that(conn: Conn) -> None:
    """It was stored when the job was."""
    parent, [first, second] = make_staged(conn, made=False)
    age(conn, second, 3_600)
    assert status(conn, parent)["stalled"] is None
    since = "UPDATE callboard.jobs SET finished_at = now() - interval '30 s' WHERE id = %s"
    conn.execute(since, (first,))
    told = "stage 'sum up': its items are still to be made, and nothing has moved for 30 s"
    assert status(conn, parent)["stalled"] == told


def test_how_long_it_is_kept_is_said_to_the_whole(conn: Conn) -> None:
    parent, [first, _] = make_staged(conn)
    with pytest.raises(ValueError, match=f"job {first} is a stage of job {parent}, and kept as long: set keep on job"):
        actions.limit(conn, first, ANNA, {"keep": "1s", "concurrency": 2})
    assert status(conn, first)["limits"] == {}
    actions.limit(conn, parent, ANNA, {"keep": "1d"})


def test_a_deadline_that_comes_before_a_stage_is_made_says_so(conn: Conn) -> None:
    parent, [_, second] = make_staged(conn, made=False)
    actions.limit(conn, parent, ANNA, {"deadline": "0s"})
    assert jobs.stop_overdue_jobs(conn) == [second]
    told = "its deadline passed with 0 items to go, and others not made yet"
    assert status(conn, second)["reason"] == told


def test_stopped_by_failures_and_gone_on_without_a_worker(conn: Conn) -> None:
    parent, [first, second] = make_staged(conn, on_failure="stop")
    assert (status(conn, parent)["state"], status(conn, second)["state"]) == ("failed", "cancelled")
    assert retry_action.retry(conn, parent, ANNA, RetrySelection(error="KeyError")) == 0
    assert status(conn, parent)["state"] == "failed"
    assert retry_action.retry(conn, parent, ANNA, RetrySelection()) == 2
    assert (status(conn, parent)["state"], status(conn, second)["state"]) == ("running", "pending")
    record(conn, first, {"succeeded": [8], "failed": [9]}, attempt=2)
    stages.update_parents(conn)
    assert status(conn, parent)["reason"] == "stage 'fetch': 1 of 10 items failed"
    assert status(conn, second)["state"] == "cancelled"


def test_a_claim_that_began_before_a_retry_makes_nothing_of_what_runs_again(conn: Conn, database_url: str) -> None:
    """The retry commits between the look of the claim and its lock."""
    parent, [first, second] = make_staged(conn, made=False)
    worker = make_worker(conn)
    with connect(database_url) as late:
        late.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        late.execute("SELECT count(*) FROM callboard.jobs")
        assert retry_action.retry(conn, parent, ANNA, RetrySelection()) == 2
        making = stages.claim_stage(late, worker, ["work"], [])
        late.execute("COMMIT")
    assert making is not None
    assert not stages.store_inputs(conn, making, 0, [(ARGS, None)])
    stages.seal_stage(conn, making)
    record(conn, first, {"succeeded": range(8, 10)}, attempt=2)
    again = stages.claim_stage(conn, worker, ["work"], [])
    assert again is not None
    assert stages.store_inputs(conn, again, 0, [(ARGS, None)] * 10)
    assert status(conn, second)["total"] == 10


def test_a_stage_of_which_a_retry_chose_nothing_is_left_as_it_was(conn: Conn) -> None:
    """The message of an item ran before its publisher, which died, could say that it was published."""
    parent, [first, second] = make_staged(conn)
    record(conn, second, {"failed": range(1, 8)}, failure=dataclasses.replace(BAD, error_type="KeyError"))
    conn.execute(
        "WITH o AS (INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, in_turn)"
        " VALUES (%s, 0, 1, 'infinity', false, true) RETURNING job_id)"
        " UPDATE callboard.jobs AS j SET in_turn = in_turn + 1 FROM o WHERE j.id = o.job_id",
        (first,),
    )
    assert queries.run(conn, queries.verify())["drift"] == []
    stages.update_parents(conn)
    assert wait_until(lambda: jobs.close_stopped(conn) or status(conn, parent)["finished_at"], 300)
    assert retry_action.retry(conn, parent, ANNA, RetrySelection(error="KeyError")) == 7
    assert status(conn, first)["state"] == "completed"
