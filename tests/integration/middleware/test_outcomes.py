"""The outcomes of items in a real worker process; at the end no counter has drifted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dramatiq
import pika
import psycopg
import pytest
from dramatiq import Message, group

import callboard
from tests.faults.rig.job_watcher import JobWatcher
from tests.support.paths import ROOT
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

#: A program whose child sends a message and ends.
CHILD_SENDS = """
import multiprocessing, sys
import callboard
from tests.support.pipeline_actors import noted

def send():
    with callboard.job("of a child"):
        noted.send(1)

if __name__ == "__main__":
    child = multiprocessing.get_context(sys.argv[1]).Process(target=send)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
#: A program that forks where it adds items to a job; the child leaves that place.
FORKS = """
import os, sys
import callboard
from tests.support.pipeline_actors import noted

def fork():
    child = os.fork()
    if not child:
        sys.exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def items():
    yield 1
    yield fork()

with callboard.job("a block that forks"):
    noted.send(fork())
callboard.submit(noted, items(), name="a source that forks")
"""
#: A program that sends when Python deletes its modules.
LAST_SENDS = """
import sys
import callboard
from tests.support.pipeline_actors import noted

class Buffer:
    def __del__(self):
        self.how(1)

    def __init__(self, how):
        one = lambda number, submit=callboard.submit, noted=noted: submit(noted, [number])
        self.how = {"send": noted.send, "submit": one}[how]

last = Buffer(sys.argv[1])
"""
#: A program that submits when Python ends, and sends a message when Python has closed what was made after it.
LATE_SENDS = """
import atexit

atexit.register(lambda: elsewhere.send(1))
import callboard, dramatiq
callboard.install()

@dramatiq.actor(actor_name="of no worker")
def elsewhere(number): ...

atexit.register(lambda: callboard.submit(elsewhere, range(1_000), name="at the end", delay="1h"))
"""
ACTORS = [
    "work", "noted", "slow", "stands", "parent", "add", "on_failure", "on_success", "leaves", "bad_text", "bad_result",
    "strict_result", "endless", "stubborn", "throws", "picky", "asks_for_time", "struck_late", "base_error", "hasty",
    "opens_a_job", "gently", "says_gently", "in_threads", "in_a_process", "forks", "on_exhausted", "limited", "counts",
    "counts_gently", "knows", "knows_gently", "asks_to_wait", "postpones_for_long", "holds_back", "first_holds_back",
    "frozen",
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """One worker process for all of these tests; at the end it stops, and its record is true."""
    with running_pipeline(postgres_url, template, broker, ACTORS, tmp_path_factory.mktemp("outcomes")) as made:
        with JobWatcher(made.environment["DATABASE_URL"], pause=0.2) as watcher:
            yield made
        assert watcher.wrong == []
        assert watcher.readings > 0
        assert made.worker is not None
        assert made.worker.stop() == 0
        assert made.drift() == []
        assert "Actor returned a value" not in made.worker.output
        assert "returned a value that is not None" not in made.worker.output
        assert "Unexpected failure in" not in made.worker.output
        assert made.conn.execute("SELECT count(*) FROM callboard.running").fetchone() == (0,)
        assert made.conn.execute("SELECT count(*) FROM callboard.workers WHERE stopped_at IS NULL").fetchone() == (0,)


# Ends ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins_at", "state", "runs"), [(1, "succeeded", 1), (3, "succeeded", 3), (9, "failed", 3)])
def test_an_item_is_tried_as_often_as_its_actor_says(wins_at: int, state: str, runs: int, pipeline: Pipeline) -> None:
    job = pipeline.submit("stubborn", {"number": 1, "wins_at": wins_at})
    item = pipeline.only(job)
    assert item["state"] == state
    assert item["attempt"] == runs
    assert item["result"] == (runs if state == "succeeded" else None)
    assert [attempt for _, attempt, _ in pipeline.runs(job.id)] == list(range(1, runs + 1))
    kept = pipeline.attempts(job)
    assert [a["retried"] for a in kept] == [True] * (runs - 1) + [False] * (state == "failed")
    assert all(a["type"].endswith("TransientError") and "TransientError" in a["traceback"] for a in kept)
    assert job.status()["retries"] == runs - 1


def test_a_retry_waits_in_the_outbox_and_never_in_the_delay_queue(pipeline: Pipeline) -> None:
    job = pipeline.submit("asks_for_time", 300.0)
    assert wait_until(lambda: job.status()["retrying"] == 1, TIMEOUT)
    assert pipeline.ready("default.DQ") == 0
    row = pipeline.conn.execute(
        "SELECT extract(epoch FROM due_at - now())::float8, attempt FROM callboard.outbox WHERE job_id = %s", (job.id,)
    ).fetchone()
    assert row is not None
    assert 0 < row[0] <= 300
    assert row[1] == 2
    (waiting,) = job.items("retrying")
    assert waiting["due_at"]
    pipeline.conn.execute("UPDATE callboard.outbox SET due_at = now() WHERE job_id = %s", (job.id,))
    item = pipeline.only(job)
    assert item["state"] == "succeeded", pipeline.attempts(job)
    (attempt,) = pipeline.attempts(job)
    assert attempt["type"] == "dramatiq.errors.Retry"


def test_an_item_that_is_postponed_has_not_failed(pipeline: Pipeline) -> None:
    """However often; it neither counts as a retry, nor towards those of its actor, nor as an error."""
    job = pipeline.submit("asks_to_wait", 3)
    first, *children = pipeline.ended(job)
    assert (first["state"], first["attempt"], first["result"]) == ("succeeded", 4, 4)
    assert [child["args"] for child in children] == [[4]]
    kept = pipeline.attempts(job)
    assert [(a["kind"], a["message"], a["retried"]) for a in kept] == [
        ("postponed", f"the API says 429, {n}", True) for n in (1, 2, 3)
    ]
    assert job.status()["retries"] == 0
    assert job.errors() == []


def test_a_postponed_item_waits_as_a_row_and_says_why(pipeline: Pipeline) -> None:
    job = pipeline.submit("asks_to_wait", 1)
    long = pipeline.submit("postpones_for_long", [])
    assert wait_until(lambda: long.status()["retrying"] == 1, TIMEOUT)
    (waiting,) = long.items("retrying")
    assert (waiting["error"]["kind"], waiting["error"]["message"]) == ("postponed", "come back tomorrow")
    assert waiting["due_at"]
    pipeline.ended(job)
    long.cancel()
    assert wait_until(lambda: long.status()["state"] == "cancelled", TIMEOUT)


@pytest.mark.parametrize("by", [None, {"number": 1}])
def test_an_item_holds_back_what_it_belongs_to(by: Any, pipeline: Pipeline) -> None:
    job = pipeline.submit("holds_back", {"number": 1}, concurrency_by=by)
    item = pipeline.only(job)
    assert (item["state"], item["result"]) == ("succeeded", 2), item
    row = pipeline.conn.execute(
        "SELECT h.key, h.value ->> 'reason', finished_at - created_at > interval '1 s'"
        " FROM callboard.jobs, jsonb_each(holds) AS h WHERE id = %s",
        (job.id,),
    ).fetchone()
    assert row == ("1" if by else "*", "the API says 429", True)


def test_what_lies_in_rabbitmq_of_a_job_that_is_held_back_does_not_start(pipeline: Pipeline) -> None:
    """Its items take two seconds in all, and the first has it held back for five."""
    job = pipeline.submit("first_holds_back", *range(300))
    pipeline.ended(job)
    last = pipeline.conn.execute(
        "SELECT max(i.started_at) > (j.holds -> '*' ->> 'until')::timestamptz"
        " FROM callboard.jobs AS j JOIN callboard.items AS i ON i.job_id = j.id WHERE j.id = %s GROUP BY j.id",
        (job.id,),
    )
    assert last.fetchone() == (True,)


def test_an_error_in_throws_is_not_tried_again(pipeline: Pipeline) -> None:
    item = pipeline.only(pipeline.submit("throws", []))
    assert (item["state"], item["attempt"]) == ("failed", 1)
    assert item["error"]["type"] == "KeyError"


def test_a_retry_keeps_only_the_end_of_a_long_traceback(pipeline: Pipeline) -> None:
    """Dramatiq puts all of it into the message, which RabbitMQ may not take then."""
    job = callboard.submit("work", [{"number": 1, "fate": "long"}])
    assert [item["state"] for item in pipeline.ended(job)] == ["succeeded"]
    too_long = "SELECT count(*) FROM callboard.items WHERE job_id = %s AND length(retry_options) > 20000"
    assert pipeline.conn.execute(too_long, (job.id,)).fetchone() == (0,)


def test_retry_when_decides(pipeline: Pipeline) -> None:
    item = pipeline.only(pipeline.submit("picky", []))
    assert (item["state"], item["attempt"]) == ("failed", 2)


def test_an_endless_actor_is_timed_out(pipeline: Pipeline) -> None:
    item = pipeline.only(pipeline.submit("endless", []))
    assert item["state"] == "failed"
    assert item["error"]["kind"] == "timed_out"
    assert item["error"]["type"].endswith("TimeLimitExceeded")


def test_a_time_limit_that_strikes_after_the_actor_returned_changes_nothing(pipeline: Pipeline) -> None:
    job = pipeline.submit("struck_late", 7)
    item = pipeline.only(job)
    assert (item["state"], item["result"]) == ("succeeded", 7)
    assert len(pipeline.runs(job.id)) == 1
    assert job.status()["retries"] == 0


def test_a_skip_keeps_its_reason(pipeline: Pipeline) -> None:
    job = pipeline.submit("work", {"number": 1, "fate": "skip"})
    item = pipeline.only(job)
    assert item["state"] == "skipped"
    assert pipeline.attempts(job)[0]["message"] == "already done"
    assert job.errors() == []


def test_a_message_past_its_age_limit_fails(pipeline: Pipeline) -> None:
    with callboard.job("old") as job:
        pipeline.actor("noted").send_with_options(args=(1,), max_age=1, delay=300)
    item = pipeline.only(job)
    assert item["state"] == "failed"
    assert (item["error"]["kind"], item["error"]["message"]) == ("timed_out", "Message age limit exceeded")
    assert pipeline.runs(job.id) == []


@pytest.mark.parametrize(("actor", "error"), [("leaves", "SystemExit"), ("base_error", "GeneratorExit")])
def test_an_actor_that_raises_no_exception_ends_its_item_only(actor: str, error: str, pipeline: Pipeline) -> None:
    item = pipeline.only(pipeline.submit(actor, []))
    assert item["state"] == "failed"
    assert item["error"]["type"] == error


@pytest.mark.parametrize(("kind", "text"), [("nul", "a \\x00 in it"), ("surrogate", "half \\ud800 a pair")])
def test_an_error_text_that_no_database_stores_stays_readable(kind: str, text: str, pipeline: Pipeline) -> None:
    assert pipeline.only(pipeline.submit("bad_text", kind))["error"]["message"] == text


def test_a_success_whose_result_cannot_be_kept_says_so_and_sends_what_it_sent(pipeline: Pipeline) -> None:
    """Also its callback and the rest of its pipeline."""
    with callboard.job("no result") as job:
        pipeline.actor("bad_result").send_with_options(args=("object",))
        pipeline.actor("bad_result").send_with_options(args=("large",), on_success=pipeline.actor("on_success"))
        (
            pipeline.actor("bad_result").message("large")
            | pipeline.actor("noted").message_with_options(pipe_ignore=True, args=(2,))
        ).run()
    first, *others = pipeline.ended(job)
    assert (first["state"], first["result"], first["error"]) == ("succeeded", None, None)
    assert first["result_unkept"] == "Encoding objects of type object is unsupported"
    assert {item["state"] for item in others} == {"succeeded"}
    ran = sorted(what.split(" x")[0] for _, _, what in pipeline.runs(job.id))
    assert ran == ["noted"] * 4 + ["on_success"]
    assert job.status()["unkept"] == 3


def test_a_strict_actor_fails_by_a_result_that_cannot_be_kept_and_sends_nothing(pipeline: Pipeline) -> None:
    """Its hooks took it for a success, and its item failed, so neither callback is sent."""
    with callboard.job("no result") as job:
        pipeline.actor("strict_result").send_with_options(on_success=pipeline.actor("on_success"))
        (pipeline.actor("strict_result").message() | pipeline.actor("noted").message()).run()
    items = pipeline.ended(job)
    assert [item["state"] for item in items] == ["failed", "failed"]
    assert items[0]["error"]["type"].endswith("ResultNotKept")
    assert pipeline.runs(job.id) == []
    assert job.status()["unkept"] == 0


def test_an_unknown_value_of_the_option_results_is_refused_where_the_actor_is_declared(pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="the option results of sloppy must be 'strict' or None, not 'Strict'"):
        dramatiq.actor(broker=pipeline.broker, actor_name="sloppy", results="Strict")(lambda: None)


def test_an_item_with_no_tries_left_sends_its_on_retry_exhausted(pipeline: Pipeline) -> None:
    """Once, and not for what its actor throws."""
    with callboard.job("exhausted") as job:
        options: dict[str, Any] = {"on_retry_exhausted": "on_exhausted"}
        pipeline.actor("stubborn").send_with_options(args=(1, 9), **options)
        pipeline.actor("throws").send_with_options(**options)
    items = pipeline.ended(job)
    assert [item["state"] for item in items] == ["failed", "failed", "succeeded"]
    assert [what for _, _, what in pipeline.runs(job.id) if what != "stubborn"] == ["on_exhausted 2 of 2"]


def test_items_that_a_rate_limiter_refuses_are_tried_again(pipeline: Pipeline) -> None:
    job = pipeline.submit("limited", *range(6))
    items = pipeline.ended(job)
    assert {item["state"] for item in items} == {"succeeded"}
    put_off = [attempt for item in items for attempt in pipeline.attempts(job, item["item"])]
    assert {attempt["type"].rpartition(".")[2] for attempt in put_off} == {"RateLimitExceeded"}
    assert all(attempt["retried"] for attempt in put_off)
    assert job.status()["retries"] == len(put_off) > 0


def test_a_result_is_stored_as_it_is(pipeline: Pipeline) -> None:
    assert pipeline.only(pipeline.submit("bad_result", "nul"))["result"] == "a \x00 in it"
    assert pipeline.only(pipeline.submit("work", {"number": 3, "fate": "result"}))["result"] == {"number": 3}
    assert pipeline.only(pipeline.submit("work", {"number": 3}))["result"] is None


def test_a_dead_letter_has_the_properties_it_was_published_with(pipeline: Pipeline) -> None:
    job = pipeline.submit("stubborn", {"number": 1, "wins_at": 9})
    assert pipeline.only(job)["state"] == "failed"
    properties, body = pipeline.dead_letter(lambda properties, _: properties.message_id == f"{job.id}-0")
    assert properties.correlation_id == f"{job.id}/0"
    assert properties.type == "stubborn"
    assert properties.app_id == "callboard"
    assert json.loads(body)["kwargs"] == {"number": 1, "wins_at": 9}


def test_a_worker_looks_for_garbage_in_what_it_made_since_it_booted(pipeline: Pipeline) -> None:
    assert pipeline.only(pipeline.submit("frozen", 1))["result"] > 10_000


@pytest.mark.parametrize("actor", ["knows", "knows_gently"])
def test_an_item_knows_what_was_said_of_its_job(actor: str, pipeline: Pipeline) -> None:
    said = {"tenant": "acme", "key": f"facts of {actor}", "metadata": {"phase": [1, "ü"]}}
    for item in pipeline.ended(pipeline.submit(actor, 1, 2, **said)):
        assert item["result"] == list(said.values())
    assert pipeline.only(pipeline.submit("knows", 1))["result"] == ["", None, {}]


def test_async_actors_have_a_current_item_too(pipeline: Pipeline) -> None:
    job = pipeline.submit("gently", 1, 2)
    items = pipeline.ended(job)
    assert len(items) == 4
    assert [item["result"] for item in items[:2]] == [0, 1]
    assert {item["actor"] for item in items[2:]} == {"noted"}


def test_in_a_coroutine_nothing_that_an_item_calls_waits_for_the_database(pipeline: Pipeline, tmp_path: Path) -> None:
    """A function that asked the database in the event loop would hold up all coroutines of the process."""
    items = [{"number": number, "folder": str(tmp_path)} for number in range(4)]
    job = pipeline.submit("says_gently", *items, tenant="acme", metadata={"a": 1})
    assert wait_until(lambda: len([*tmp_path.glob("begun-*")]) == len(items), TIMEOUT)
    with psycopg.connect(pipeline.environment["DATABASE_URL"]) as other:
        other.execute("LOCK TABLE callboard.jobs")
        (tmp_path / "gate").touch()
        assert wait_until(lambda: len([*tmp_path.glob("said-*")]) == len(items), TIMEOUT)
    ended = pipeline.ended(job)[: len(items)]
    assert [item["state"] for item in ended] == ["skipped", "succeeded", "succeeded", "succeeded"]
    assert [item["result"] for item in ended[1:]] == [["acme", None, {"a": 1}, False]] * 3
    assert pipeline.conn.execute("SELECT FROM runs WHERE what = %s", (str(tmp_path),)).rowcount == 3


# What is sent --------------------------------------------------------------------------------------------------------


def test_children_belong_to_their_parents_job(pipeline: Pipeline) -> None:
    job = pipeline.submit("parent", {"number": 1, "children": 3})
    items = pipeline.ended(job)
    assert [item["actor"] for item in items] == ["parent", "noted", "noted", "noted"]
    assert [item for item, _, _ in pipeline.runs(job.id)] == [1, 2, 3]


def test_what_an_actors_threads_send_belongs_to_its_item(pipeline: Pipeline) -> None:
    job = pipeline.submit("in_threads", 40)
    assert len(pipeline.ended(job)) == 41
    with callboard.job("a block") as block, ThreadPoolExecutor(4) as pool:
        list(pool.map(pipeline.actor("noted").send, range(5)))
    assert block.wait(TIMEOUT)["total"] == 5


def test_a_parent_that_fails_sends_no_children(pipeline: Pipeline) -> None:
    job = pipeline.submit("parent", {"number": 1, "children": 3, "fails": True})
    item = pipeline.only(job)
    assert (item["state"], item["attempt"]) == ("failed", 2)
    assert pipeline.runs(job.id) == []


def test_callbacks_are_sent_by_the_outcome(pipeline: Pipeline) -> None:
    with callboard.job("callbacks") as job:
        options: dict[str, Any] = {
            "on_failure": pipeline.actor("on_failure"),
            "on_success": pipeline.actor("on_success"),
        }
        pipeline.actor("add").send_with_options(args=(1, 2), **options)
        pipeline.actor("parent").send_with_options(args=(1, 2), kwargs={"fails": True}, **options)
    items = pipeline.ended(job)
    assert [what for _, _, what in pipeline.runs(job.id)] == [
        "on_success 3",
        "on_failure ValueError",
        "on_failure ValueError",
    ]
    assert len(items) == 5  # Dramatiq's on_failure goes with each attempt that failed


def test_a_message_of_send_now_is_sent_even_when_its_sender_fails(pipeline: Pipeline) -> None:
    job = pipeline.submit("hasty", 41)
    assert pipeline.only(job)["state"] == "failed"
    assert wait_until(lambda: any(i["args"] == [41] for i in pipeline.sent_items("noted")), TIMEOUT)


def test_a_pipeline_stays_in_its_job(pipeline: Pipeline) -> None:
    with callboard.job("pipeline") as job:
        (
            pipeline.actor("add").message(1, 2) | pipeline.actor("add").message(10) | pipeline.actor("add").message(100)
        ).run()
    assert [item["result"] for item in pipeline.ended(job)] == [3, 13, 113]


def test_a_group_is_in_one_job(pipeline: Pipeline) -> None:
    with callboard.job("group") as job:
        group([pipeline.actor("add").message(n, n) for n in range(5)]).run()
    assert sorted(item["result"] for item in pipeline.ended(job)) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("number", [0, 3])
def test_a_job_made_in_an_actor_is_a_job(number: int, pipeline: Pipeline) -> None:
    """It is sealed when its block ends, before the actor's item has ended."""
    item = pipeline.only(pipeline.submit("opens_a_job", number))
    assert item["state"] == "succeeded", item["error"]
    inner = callboard.get(item["result"])
    assert len(pipeline.ended(inner)) == number


def run_program(pipeline: Pipeline, folder: Path, code: str, *arguments: str) -> str:
    """Run a program of an app to its end, which must be a success; return what it writes to stderr."""
    script = folder / "script.py"
    script.write_text(code)
    environment = {**os.environ, **pipeline.environment, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, check=True, timeout=TIMEOUT, stderr=subprocess.PIPE, text=True)
    return done.stderr


def test_a_plain_send_is_an_item_of_the_actors_standing_job(pipeline: Pipeline) -> None:
    sent = pipeline.actor("add").send(20, 22)
    ((number, _, _),) = items_of(pipeline, sent.message_id)
    job = callboard.get(number)
    assert (job.status()["name"], job.status()["standing"]) == ("add", True)
    assert wait_until(lambda: any(item["result"] == 42 for item in job.items()), TIMEOUT)
    assert len(items_of(pipeline, sent.message_id)) == 1


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_child_of_multiprocessing_publishes_what_it_has_sent_before_it_ends(
    how: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    """Such a child calls no exit handler of its parent's, and the claim of its message held for eight seconds."""
    run_program(pipeline, tmp_path, CHILD_SENDS, how)
    mine = "FROM callboard.outbox AS o JOIN callboard.jobs AS j ON j.id = o.job_id WHERE j.name = 'of a child'"
    assert pipeline.conn.execute(f"SELECT {mine}").rowcount == 0


def test_a_child_that_leaves_a_block_or_a_source_ends_nothing_of_its_parent(pipeline: Pipeline, tmp_path: Path) -> None:
    run_program(pipeline, tmp_path, FORKS)
    rows = "SELECT id, name, total FROM callboard.jobs WHERE name LIKE '%that forks' ORDER BY id"
    found = pipeline.conn.execute(rows).fetchall()
    assert [row[1:] for row in found] == [("a block that forks", 1), ("a source that forks", 2)]
    for number, *_ in found:
        assert callboard.get(number).wait(TIMEOUT)["state"] == "completed"


def test_what_a_process_sends_after_its_broker_is_closed_is_left_to_workers(pipeline: Pipeline, tmp_path: Path) -> None:
    """A claim of the process that ends would hold for eight seconds."""
    run_program(pipeline, tmp_path, LATE_SENDS)
    waiting = "SELECT j.id, o.claimed_until FROM callboard.jobs AS j JOIN callboard.outbox AS o ON o.job_id = j.id"
    [(job, claimed_until)] = pipeline.conn.execute(f"{waiting} WHERE j.actor = 'of no worker'").fetchall()
    assert claimed_until is None
    callboard.get(job).cancel()
    [(job, total)] = pipeline.conn.execute("SELECT id, total FROM callboard.jobs WHERE name = 'at the end' AND sealed")
    assert total == 1_000  # though no thread stores a large chunk then
    callboard.get(job).cancel()


@pytest.mark.parametrize("how", ["send", "submit"])
def test_what_is_sent_when_the_interpreter_ends_is_an_error_and_keeps_no_program(
    how: str, pipeline: Pipeline, tmp_path: Path
) -> None:
    errors = run_program(pipeline, tmp_path, LAST_SENDS, how)
    assert "the program has ended: send, submit and ask before that" in errors


@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("raise", 1), ("skip", 0), ("return", 0)])
def test_a_child_that_leaves_its_actor_ends_and_records_nothing(how: str, code: int, pipeline: Pipeline) -> None:
    """Its thread would go on as one of the worker, and the parent would wait for it for ever."""
    item = pipeline.only(pipeline.submit("forks", how))
    assert (item["state"], item["result"]) == ("succeeded", code)


def test_a_child_process_of_an_actor_belongs_to_no_item_and_sends_at_once(pipeline: Pipeline) -> None:
    assert pipeline.only(pipeline.submit("in_a_process", 4711))["result"] == 0
    assert wait_until(lambda: [4711] in [i["args"] for i in pipeline.sent_items("noted", "succeeded")], TIMEOUT)


def test_a_delayed_send_waits_in_the_outbox_and_comes_on_time(pipeline: Pipeline) -> None:
    with callboard.job("delayed") as job:
        began = time.time()
        pipeline.actor("noted").send_with_options(args=(1,), delay=600_000)
        sent = time.time()
    assert pipeline.ready("default.DQ") == 0
    due = "extract(epoch FROM due_at)::float8"
    row = pipeline.conn.execute(f"SELECT {due} FROM callboard.outbox WHERE job_id = %s", (job.id,)).fetchone()
    assert row is not None
    assert began + 599.9 <= row[0] <= sent + 600.1
    soon = f"UPDATE callboard.outbox SET due_at = now() + interval '0.5 s' WHERE job_id = %s RETURNING {due}"
    row = pipeline.conn.execute(soon, (job.id,)).fetchone()
    assert row is not None
    pipeline.only(job)
    started = pipeline.conn.execute(
        "SELECT extract(epoch FROM started_at)::float8 FROM callboard.items WHERE job_id = %s", (job.id,)
    ).fetchone()
    assert started is not None
    assert 0 <= started[0] - row[0] < TIMEOUT  # how late it may be: tests/faults/test_restarts.py


def test_a_send_with_a_strange_priority_does_not_hold_up_others(pipeline: Pipeline) -> None:
    with callboard.job("odd") as job:
        pipeline.actor("noted").send_with_options(args=(1,), broker_priority="high")
        pipeline.actor("noted").send(2)
    assert [item["state"] for item in pipeline.ended(job)] == ["succeeded", "succeeded"]


# Foreign messages ----------------------------------------------------------------------------------------------------


def foreign(actor: str, *args: object, **options: object) -> Message[None]:
    """As stock Dramatiq would send it."""
    return Message("default", actor, args, {}, dict(options))


def put(pipeline: Pipeline, *bodies: bytes) -> None:
    with pipeline.channel() as channel:
        for body in bodies:
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))


def items_of(pipeline: Pipeline, message_id: str) -> list[tuple[int, int, str]]:
    found = pipeline.conn.execute(
        "SELECT job_id, item, state::text FROM callboard.items WHERE %s IN (message_uuid::text, message_id)",
        (message_id,),
    )
    return [(row[0], row[1], row[2]) for row in found]


@pytest.mark.parametrize("timestamp", [None, -1])
def test_a_foreign_message_is_recorded_when_it_arrives_and_retried_like_any_other(
    pipeline: Pipeline, timestamp: int | None
) -> None:
    message = foreign("stubborn", 1, 3)
    if timestamp is not None:
        message = message.copy(message_timestamp=timestamp)
    put(pipeline, message.encode())
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, message.message_id)] == ["succeeded"], TIMEOUT)
    ((job, item, _),) = items_of(pipeline, message.message_id)
    assert callboard.get(job).status()["standing"]
    assert [attempt for i, attempt, _ in pipeline.runs(job) if i == item] == [1, 2, 3]


def test_a_foreign_message_whose_actor_the_worker_lacks_is_a_dead_letter_as_its_log_says(pipeline: Pipeline) -> None:
    message, after = foreign("nobody's", 1), foreign("noted", 84)
    put(pipeline, message.encode(), after.encode())
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, after.message_id)] == ["succeeded"], TIMEOUT)
    pipeline.dead_letter(lambda _, body: body == message.encode())
    assert pipeline.worker is not None
    lines = [line for line in pipeline.worker.output.splitlines() if "nobody's" in line]
    assert len(lines) == 1
    assert lines[0].endswith('this worker has no actor "nobody\'s": a message that no job counts is a dead letter')


def test_a_foreign_message_that_comes_twice_is_one_item(pipeline: Pipeline) -> None:
    message = foreign("noted", 77)
    put(pipeline, message.encode(), message.encode())
    after = foreign("noted", 78)
    put(pipeline, after.encode())
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, after.message_id)] == ["succeeded"], TIMEOUT)
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, message.message_id)] == ["succeeded"], TIMEOUT)
    put(pipeline, message.encode())
    again = foreign("noted", 79)
    put(pipeline, again.encode())
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, again.message_id)] == ["succeeded"], TIMEOUT)
    ((job, item, _),) = items_of(pipeline, message.message_id)
    assert pipeline.drift() == []
    assert (
        len([i for i, _, _ in pipeline.runs(job) if i == item]) <= 2
    )  # two at the same moment may both run; once counted


@pytest.mark.parametrize("how", ["sent", "foreign"])
def test_a_message_runs_whatever_its_timestamp(how: str, pipeline: Pipeline) -> None:
    """Other packages write fractions, or none; AMQP producers in other languages may write nanoseconds."""
    times: list[Any] = [time.time() * 1000, None, 10**18, -(10**18)]
    messages = [foreign("noted", n).copy(message_timestamp=when) for n, when in enumerate(times)]
    if how == "sent":
        for message in messages:
            pipeline.broker.enqueue(message)
    else:
        put(pipeline, *(message.encode() for message in messages))

    def states() -> list[str]:
        return [s for m in messages for _, _, s in items_of(pipeline, m.message_id)]

    assert wait_until(lambda: states() == ["succeeded"] * len(times), TIMEOUT), states()


def test_a_message_that_was_moved_from_another_queue_runs(pipeline: Pipeline) -> None:
    """Its worker has no consumer of the queue that the message names."""
    moved = foreign("noted", 83).copy(queue_name="elsewhere")
    put(pipeline, moved.encode())
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, moved.message_id)] == ["succeeded"], TIMEOUT)
    assert pipeline.worker is not None
    assert "does not catch" not in pipeline.worker.output


@pytest.mark.parametrize("message_id", ["", "always this one"])
def test_messages_of_another_language_with_one_id_all_run(message_id: str, pipeline: Pipeline) -> None:
    messages = [foreign("noted", n).copy(message_id=message_id) for n in (1, 2, 2)]
    if message_id:
        messages[2] = messages[2].copy(message_timestamp=messages[1].message_timestamp + 1)
    else:  # equal in every field
        messages[2] = messages[1]
    put(pipeline, *(message.encode() for message in messages))
    done = ["succeeded"] * 3
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, message_id)] == done, TIMEOUT)


def test_a_delayed_message_of_a_stock_producer_that_comes_twice_is_one_item(pipeline: Pipeline) -> None:
    """As when its worker dies between the record and the acknowledgement."""
    message = foreign("noted", 80, eta=int(time.time() * 1000)).copy(queue_name="default.DQ")
    after = foreign("noted", 81, eta=message.options["eta"] + 1).copy(queue_name="default.DQ")
    with pipeline.channel() as channel:
        for one in (message, message, after):
            channel.basic_publish("", "default.DQ", one.encode(), pika.BasicProperties(delivery_mode=2))
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, after.message_id)] == ["succeeded"], TIMEOUT)
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, message.message_id)] == ["succeeded"], TIMEOUT)
    ((job, item, _),) = items_of(pipeline, message.message_id)
    assert len([i for i, _, _ in pipeline.runs(job) if i == item]) == 1


def test_a_delayed_message_of_a_stock_producer_waits_as_a_row(pipeline: Pipeline) -> None:
    """Not in a worker's memory; one that no row can hold is a dead letter, and holds up no other."""
    hour = int(time.time() * 1000) + 3_600_000
    broken = foreign("noted", 1, eta=1e300).copy(queue_name="default.DQ")
    message = foreign("noted", 82, eta=hour).copy(queue_name="default.DQ")
    with pipeline.channel() as channel:
        for one in (broken, message):
            channel.basic_publish("", "default.DQ", one.encode(), pika.BasicProperties(delivery_mode=2))
    due = (
        "SELECT coalesce(i.queue, j.queue) FROM callboard.items AS i JOIN callboard.outbox AS o USING (job_id, item)"
        " JOIN callboard.jobs AS j ON j.id = i.job_id"
        " WHERE i.message_uuid = %s AND o.due_at > now() + interval '50 minutes'"
    )
    assert wait_until(lambda: pipeline.conn.execute(due, (message.message_id,)).fetchone() == ("default",), TIMEOUT)
    pipeline.dead_letter(lambda _, body: body == broken.encode())
    pipeline.conn.execute("UPDATE callboard.outbox SET due_at = now() WHERE due_at > now() + interval '50 minutes'")
    assert wait_until(lambda: [s for _, _, s in items_of(pipeline, message.message_id)] == ["succeeded"], TIMEOUT)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe no text",
        b"not json",
        b"[]",
        b"null",
        b'{"foo": 1}',
        b'{"queue_name": "default", "actor_name": "noted", "args": null, "kwargs": {}, "options": {}}',
        b'{"queue_name": "default", "actor_name": "noted", "args": [1], "kwargs": {}, "options": null}',
        b'{"queue_name": "default", "actor_name": ["noted"], "args": [1], "kwargs": {}, "options": {}}',
        b'{"queue_name": "default", "actor_name": "noted", "args": [1], "kwargs": {}, "options": {}, "message_id": 5}',
        (
            b'{"queue_name": "default", "actor_name": "noted", "args": [], "kwargs": {}, "options": {},'
            b' "message_id": "\\u0000"}'
        ),
    ],
    ids=["bytes", "text", "list", "null", "other", "args", "options", "actor", "id", "nul"],
)
def test_a_malformed_message_is_dead_lettered_and_does_not_hold_up_others(body: bytes, pipeline: Pipeline) -> None:
    put(pipeline, body)
    assert pipeline.only(pipeline.submit("work", {"number": 1}))["state"] == "succeeded"
    pipeline.dead_letter(lambda _, found: found == body)


def test_a_message_of_an_unknown_item_is_dropped(pipeline: Pipeline) -> None:
    gone = {"callboard": {"job": 1, "item": 0, "attempt": 1, "epoch": 0, "suspect": True}}
    put(pipeline, foreign("noted", 1, **gone).encode())
    assert pipeline.only(pipeline.submit("work", {"number": 1}))["state"] == "succeeded"
    assert pipeline.runs(1) == []


# What is seen --------------------------------------------------------------------------------------------------------


def test_a_step_is_seen_on_item_and_job_while_it_runs(pipeline: Pipeline) -> None:
    job = pipeline.submit("stands", {})
    assert wait_until(lambda: job.status()["step"] == "standing still", TIMEOUT)
    (item,) = job.items("running")
    assert item["step"] == "standing still"
    assert job.status()["state"] == "running"
    # It counts as pending until its publisher has recorded that RabbitMQ took the message, which may be later.
    assert wait_until(lambda: job.status()["running"] == 1, TIMEOUT)
    pipeline.conn.execute("INSERT INTO runs (job, what) VALUES (%s, 'seen')", (job.id,))
    pipeline.only(job)


@pytest.mark.parametrize(
    ("actor", "pages", "told"),
    [
        ("counts", 4, {"done": 2.5, "total": 4}),
        ("counts", 2, {"done": 2, "total": 2}),
        ("counts_gently", 9, {"done": 7, "total": 9}),
    ],
)
def test_progress_is_seen_while_the_item_runs(
    actor: str, pages: int, told: dict[str, float], pipeline: Pipeline
) -> None:
    job = pipeline.submit(actor, {"pages": pages})
    assert wait_until(lambda: next(job.items())["progress"] == told, TIMEOUT)
    (item,) = job.items("running")  # it runs until somebody has seen it
    assert item["progress"] == told
    pipeline.conn.execute("INSERT INTO runs (job, what) VALUES (%s, 'seen')", (job.id,))
    assert pipeline.only(job)["progress"] is None


def test_progress_moves_and_may_have_no_end(pipeline: Pipeline) -> None:
    job = pipeline.submit("counts", {"pages": None})

    def done() -> float:
        progress = next(job.items())["progress"]
        return progress["done"] if progress and progress["total"] is None else -1

    assert wait_until(lambda: done() >= 0, TIMEOUT)
    first = done()
    assert wait_until(lambda: done() > first, TIMEOUT)
    pipeline.conn.execute("INSERT INTO runs (job, what) VALUES (%s, 'seen')", (job.id,))
    assert pipeline.only(job)["state"] == "succeeded"


def test_only_slow_items_get_a_row_in_running(pipeline: Pipeline, tmp_path: Path) -> None:
    def inserted(job: callboard.Job, items: str = "true") -> int:
        rows = "SELECT FROM seen JOIN callboard.items USING (job_id, item) WHERE job_id = %s AND "
        return pipeline.conn.execute(f"{rows} {items}".encode(), (job.id,)).rowcount

    pipeline.conn.execute(
        """
        CREATE TABLE seen (job_id bigint, item int);
        CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO seen VALUES (new.job_id, new.item); RETURN new; END $$;
        CREATE TRIGGER see AFTER INSERT ON callboard.running FOR EACH ROW EXECUTE FUNCTION see();
        """
    )
    job = pipeline.submit("work", *({"number": n} for n in range(300)))
    pipeline.ended(job)
    # On a busy machine some stand still in the middle, and a thread may before it notes the end.
    assert inserted(job, "finished_at - started_at < interval '0.25 s'") < 30
    gate = tmp_path / "gate"
    job = pipeline.submit("work", *({"number": n, "gate": str(gate)} for n in range(4)))
    assert wait_until(lambda: inserted(job) == 4, TIMEOUT)
    gate.touch()
    pipeline.ended(job)
    assert inserted(job) == 4
    pipeline.conn.execute("DROP TRIGGER see ON callboard.running")


def test_a_worker_is_registered_and_beats(pipeline: Pipeline) -> None:
    def beat() -> object:
        row = pipeline.conn.execute("SELECT beat_at FROM callboard.workers WHERE stopped_at IS NULL").fetchone()
        assert row is not None
        return row[0]

    first = beat()
    assert wait_until(lambda: beat() != first, TIMEOUT)
    row = pipeline.conn.execute("SELECT pid, threads, actors, queues FROM callboard.workers").fetchone()
    assert row is not None
    assert pipeline.worker is not None
    assert row[0] in [pipeline.worker.pid, *pipeline.worker.children()]
    assert row[1] == 8
    assert "stubborn" in row[2]
    assert row[3] == ["default"]
