"""What an item saves by statements of the app's own is there if and only if it succeeded, and once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

import callboard
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.timer import Timer
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

ACTORS = ["saves", "forgetful", "saves_gently", "saves_in_threads", "saves_together", "noted"]
#: The app's tables. `mark` is unique; `late` refers to a row of `marks`, which is looked at when the transaction ends.
TABLES = """
CREATE TABLE saved (job bigint, item int, attempt int, mark text UNIQUE CHECK (mark <> 'bad'));
CREATE TABLE marks (mark text PRIMARY KEY);
CREATE TABLE late (mark text REFERENCES marks DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE counted (name text PRIMARY KEY, items int NOT NULL);
INSERT INTO marks VALUES ('known');
INSERT INTO counted VALUES ('all', 0);
"""
MODULES = ["tests.support.pipeline_actors", "tests.support.saving_actors"]


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """One worker process for all of these tests."""
    folder = tmp_path_factory.mktemp("saves")
    with running_pipeline(postgres_url, template, broker, ACTORS, folder, MODULES, tables=TABLES) as made:
        yield made
        assert made.worker is not None
        assert made.worker.stop() == 0
        assert made.drift() == []
        wrong = (
            "SELECT count(*) FROM (SELECT DISTINCT job, item FROM saved WHERE job IS NOT NULL) AS s FULL JOIN ("
            "   SELECT i.* FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = job_id"
            "   WHERE j.actor LIKE 'saves%'"
            ") AS i ON s.job = i.job_id AND s.item = i.item WHERE (s.item IS NULL) = (i.state = 'succeeded')"
        )
        assert made.conn.execute(wrong).fetchone() == (0,)


def saved(pipeline: Pipeline, job: callboard.Job) -> list[tuple[Any, ...]]:
    query = "SELECT item, attempt, mark FROM saved WHERE job = %s ORDER BY 1, 2, 3"
    return pipeline.conn.execute(query, (job.id,)).fetchall()


def test_a_success_saves_and_another_end_does_not(pipeline: Pipeline) -> None:
    fates = ["succeed", "retry", "fail", "skip"]
    job = pipeline.submit("saves", *({"fate": fate} for fate in fates))
    assert [item["state"] for item in pipeline.ended(job)] == ["succeeded", "succeeded", "failed", "skipped"]
    assert saved(pipeline, job) == [(0, 1, None), (1, 2, None)]
    process = pipeline.worker
    assert process is not None
    worker = pipeline.conn.execute("SELECT max(id) FROM callboard.workers").fetchone()
    assert worker is not None
    lines = (
        f"[shop.saving] [INFO] [item {job.id}/1, attempt 2, worker {worker[0]}] 100 % saved in retry",
        f"[item {job.id}/2, attempt 3, worker {worker[0]}] Failed to process message",
    )
    # Dramatiq's master passes them on.
    assert wait_until(lambda: all(line in process.output for line in lines), TIMEOUT), process.output


@pytest.mark.parametrize(
    ("sql", "params", "error"),
    [
        ("INSERT INTO saved (mark) VALUES (%s)", ("bad",), "CheckViolation"),
        ("INSERT INTO saved (mark) VALUES (%(mark)s)", {"mark": "twice"}, None),
        ("INSERT INTO saved (mark) VALUES (%s)", ["twice"], "UniqueViolation"),
        ("INSERT INTO absent VALUES (1)", None, "UndefinedTable"),
        ("INSERT INTO saved VALUES (%s)", [], "ProgrammingError"),
        ("INSERT INTO late VALUES ('unknown')", None, "ForeignKeyViolation"),
        ("SELECT 1; COMMIT", None, "SyntaxError"),
        ("WITH one AS (SELECT 1) INSERT INTO late SELECT 'known' FROM one", None, None),
    ],
)
def test_a_statement_that_fails_fails_its_item_alone(
    sql: str, params: Any, error: str | None, pipeline: Pipeline
) -> None:
    """In a flush with others; the error has its text and the place of its call."""
    job = pipeline.submit("saves", {}, {"sql": sql, "params": params}, {})
    items = pipeline.ended(job)
    assert [item["state"] for item in items] == ["succeeded", "failed" if error else "succeeded", "succeeded"]
    assert [item for item, _, _ in saved(pipeline, job)] == [0, 2] if error else [0, 1, 2]
    if error:
        found = items[1]["error"]
        assert found["type"].endswith(error)
        assert found["message"].endswith(f"; it saves: {sql}")
        assert found["place"].startswith("support/saving_actors.py:")
        assert pipeline.attempts(job, 1)[0]["retried"] is False
        pipeline.dead_letter(lambda properties, _: properties.message_id == f"{job.id}-1")


def test_many_that_fail_cost_the_others_nothing(pipeline: Pipeline) -> None:
    job = pipeline.submit("saves", *({"mark": "bad" if n % 3 == 1 else None} for n in range(300)))
    states = [item["state"] for item in pipeline.ended(job)]
    assert states == ["succeeded", "failed", "succeeded"] * 100
    assert len(saved(pipeline, job)) == 200


@pytest.mark.parametrize(
    ("limit", "error"),
    [
        ("bytes", "an item may save 1,000 statements, of 16 MiB with their parameters together"),
        ("statements", "an item may save 1,000 statements, of 16 MiB with their parameters together"),
        ("commit", "save() takes one INSERT, UPDATE, DELETE, MERGE, SELECT, WITH or CALL statement, not"),
        ("value", "cannot adapt type 'lock'"),
    ],
)
def test_what_can_not_be_saved_is_refused_in_the_actor(limit: str, error: str, pipeline: Pipeline) -> None:
    job = pipeline.submit("forgetful", {"limit": limit})
    (item,) = pipeline.ended(job)
    assert item["state"] == "failed"
    assert error in item["error"]["message"]
    assert "in forgetful" in pipeline.attempts(job)[0]["traceback"]
    assert saved(pipeline, job) == []


def test_parameters_are_saved_as_they_were(pipeline: Pipeline) -> None:
    pipeline.only(pipeline.submit("forgetful", {"limit": "changed"}))
    assert pipeline.conn.execute("SELECT count(*) FROM saved WHERE mark = 'as it wasx'").fetchone() == (1,)


def test_async_actors_and_threads_of_an_actor_save_too(pipeline: Pipeline) -> None:
    gently = pipeline.submit("saves_gently", {"mark": "gently"}, {"mark": "skipped"})
    threads = pipeline.submit("saves_in_threads", {"count": 50})
    assert [item["state"] for item in pipeline.ended(gently)] == ["succeeded", "skipped"]
    assert pipeline.only(threads)["state"] == "succeeded"
    assert saved(pipeline, gently) == [(0, 1, "gently")]
    assert saved(pipeline, threads) == [(0, 1, None)] * 50


def test_each_item_of_a_batch_saves_its_own(pipeline: Pipeline) -> None:
    items = [{"mark": "a"}, {"mark": "bad"}, {"mark": "b", "fate": "fail"}, {"mark": "c"}]
    job = pipeline.submit("saves_together", *items, chunk=4)
    states = [item["state"] for item in pipeline.ended(job)]
    assert states == ["succeeded", "failed", "failed", "succeeded"]
    assert saved(pipeline, job) == [(0, 1, "a"), (3, 1, "c")]


def test_a_lock_of_the_app_holds_up_only_what_needs_it(pipeline: Pipeline) -> None:
    """Others end while it is held, and what waited is saved once it is gone."""
    waits = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    sql = "UPDATE counted SET items = items + 1 WHERE name = 'all'"
    with psycopg.connect(pipeline.environment["DATABASE_URL"]) as other:
        other.execute("SELECT FROM counted FOR UPDATE")
        waiting = pipeline.submit("saves", *({"sql": sql} for _ in range(20)))
        assert wait_until(lambda: pipeline.conn.execute(waits).rowcount > 0, TIMEOUT)
        timer = Timer()
        pipeline.ended(pipeline.submit("noted", *range(20)))
        beside = timer.seconds
        timer = Timer()
        pipeline.ended(pipeline.submit("saves", *({} for _ in range(20))))
        after = timer.seconds
        assert waiting.status()["succeeded"] == 0
        print(  # noqa: T201 — measured
            f"while another job's items wait for a lock: {beside:.2f} s, those that save {after:.2f} s"
        )
        assert max(beside, after) < 10
    assert [item["state"] for item in pipeline.ended(waiting)] == ["succeeded"] * 20
    assert pipeline.conn.execute("SELECT items FROM counted").fetchone() == (20,)


def test_items_that_count_in_one_row_are_all_counted(pipeline: Pipeline) -> None:
    """They deadlock with each other's flushes at most for a while."""
    sql = "INSERT INTO counted VALUES (%s, 1) ON CONFLICT (name) DO UPDATE SET items = counted.items + 1"
    jobs = [
        pipeline.submit("saves", *({"sql": sql, "params": [f"row {(n + m) % 7}"]} for n in range(100)))
        for m in range(3)
    ]
    with ThreadPoolExecutor(3) as pool:
        for items in pool.map(pipeline.ended, jobs):
            assert [item["state"] for item in items] == ["succeeded"] * 100
    assert pipeline.conn.execute("SELECT sum(items) FROM counted WHERE name LIKE 'row %'").fetchone() == (300,)
