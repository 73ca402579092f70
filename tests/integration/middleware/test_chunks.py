"""Messages that carry many items: each has its own outcome, whether its actor gets them one by one or in a list."""

import json
from collections import Counter
from collections.abc import Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

import callboard
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.vhosts import Broker
from tests.support.workers import Worker, wait_until

FATES = {0: "fail", 1: "retry", 2: "skip", 3: "result"}


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    folder = tmp_path_factory.mktemp("chunks")
    with running_pipeline(postgres_url, template, broker, ["work", "together", "noted", "nobody_has"], folder) as made:
        yield made
        assert made.worker is not None
        assert made.worker.stop() == 0
        assert made.drift() == []
        assert "Unexpected failure in" not in made.worker.output


def mixed(count: int) -> list[dict[str, Any]]:
    return [{"number": n, "fate": FATES.get(n % 10, "succeed")} for n in range(count)]


def test_each_item_of_a_chunk_has_its_own_outcome(pipeline: Pipeline) -> None:
    job = pipeline.submit("work", *mixed(200), chunk=50)
    items = pipeline.ended(job)
    status = job.status()
    assert (status["succeeded"], status["failed"], status["skipped"]) == (160, 20, 20)
    assert status["retries"] == 20 + 2 * 20
    assert [item["state"] for item in items[:4]] == ["failed", "succeeded", "skipped", "succeeded"]
    assert items[3]["result"] == {"number": 3}
    assert [item["attempt"] for item in items[:5]] == [3, 2, 1, 1, 1]


def test_an_item_of_a_chunk_that_fails_at_once_has_a_dead_letter(pipeline: Pipeline) -> None:
    """The message that carried it is acknowledged: its others succeeded."""
    job = pipeline.submit("noted", *({"number": n} if n % 20 else {"wrong": n} for n in range(60)), chunk=30)
    pipeline.ended(job)
    assert job.status()["failed"] == 3
    ids = set[str]()
    for _ in range(3):
        _, body = pipeline.dead_letter(lambda _, body: json.loads(body)["message_id"].startswith(f"{job.id}-"))
        ids.add(json.loads(body)["message_id"])
    assert ids == {f"{job.id}-{n}" for n in (0, 20, 40)}


def test_an_actor_that_takes_batches_gets_all_items_of_a_message(pipeline: Pipeline) -> None:
    job = pipeline.submit("together", *({"number": n} for n in range(100)), chunk=25)
    assert all(item["result"] == {"of": 25} for item in pipeline.ended(job))
    calls = [what.split()[1:] for _, _, what in pipeline.runs(job.id)]
    assert sorted(calls, key=lambda call: int(call[0])) == [
        [str(n) for n in range(first, first + 25)] for first in (0, 25, 50, 75)
    ]


def test_each_item_of_a_batch_has_its_own_outcome(pipeline: Pipeline) -> None:
    fates = {1: "fail", 2: "skip", 4: "retry"}
    job = pipeline.submit("together", *({"number": n, "fate": fates.get(n)} for n in range(6)), chunk=6)
    items = pipeline.ended(job)
    assert [item["state"] for item in items] == [
        "succeeded", "failed", "skipped", "succeeded", "succeeded", "succeeded"
    ]  # fmt: skip
    assert [item["result"] for item in items] == [{"of": 6}, None, None, {"of": 6}, "alone", {"of": 6}]
    assert items[2]["error"]["message"] == "not needed"
    assert [a["type"] for a in pipeline.attempts(job, 1)] == ["ValueError"] * 3
    calls = Counter(what for _, _, what in pipeline.runs(job.id))
    assert calls == {"together 0 1 2 3 4 5": 1, "together 1": 2, "together 4": 1}


@pytest.mark.parametrize(
    ("first", "second", "sent"),
    [
        ({"fate": "fail"}, {}, [0, 1]),
        ({"fate": "retry"}, {"fate": "skip"}, [0, 0, 1]),  # the first sends once more when it runs again
        ({"fate": "postpone"}, {}, [0, 0, 1]),
        ({"save": "SELECT 1/0"}, {}, [0, 1]),
        ({"fate": "fail"}, {"fate": "fail"}, []),
    ],
)
def test_what_a_batch_sends_goes_out_if_an_item_ends_well(
    first: dict[str, Any], second: dict[str, Any], sent: list[int], pipeline: Pipeline
) -> None:
    """Those that succeed do not run again, and would never send it."""
    items = [{"number": n, "send": True, **fate} for n, fate in enumerate((first, second))]
    job = pipeline.submit("together", *items, chunk=2)
    children = pipeline.ended(job)[2:]
    assert sorted(child["args"][0] for child in children) == sent


def test_the_class_of_an_exception_is_an_outcome_as_one_that_is_raised(pipeline: Pipeline) -> None:
    """It is no result: the item has not succeeded."""
    job = pipeline.submit("together", *({"number": n, "fate": "class" if n else None} for n in range(2)), chunk=2)
    assert [item["state"] for item in pipeline.ended(job)] == ["succeeded", "failed"]
    assert {a["type"] for a in pipeline.attempts(job, 1)} == {"LookupError"}


@pytest.mark.parametrize(("fate", "error"), [("raise", "TransientError"), ("short", "ValueError")])
def test_an_exception_of_a_batch_holds_for_all_its_items(fate: str, error: str, pipeline: Pipeline) -> None:
    job = pipeline.submit("together", *({"number": n, "fate": fate if n == 2 else None} for n in range(4)), chunk=4)
    assert [item["attempt"] for item in pipeline.ended(job)] == [2] * 4
    assert job.status()["retries"] == 4
    for item in range(4):
        (attempt,) = pipeline.attempts(job, item)
        assert attempt["type"].endswith(error)
        assert fate == "raise" or "a batch of 4 items gives a list of 4 outcomes" in attempt["message"]


def test_a_batch_whose_first_item_must_not_run_runs_with_the_others(pipeline: Pipeline) -> None:
    """A copy of the whole message is delivered: the items that ended do not run again."""
    job = pipeline.submit("together", *({"number": n} for n in range(4)), chunk=4)
    pipeline.ended(job)
    pipeline.conn.execute(
        "UPDATE callboard.items SET state = 'waiting', finished_at = NULL WHERE job_id = %s AND item > 0", (job.id,)
    )
    pipeline.conn.execute("DELETE FROM callboard.results WHERE job_id = %s AND item > 0", (job.id,))
    pipeline.conn.execute(
        "UPDATE callboard.jobs SET state = 'running', finished_at = NULL, succeeded = 1, epoch = 1 WHERE id = %s",
        (job.id,),
    )
    carrier = carrier_of(pipeline, job, range(4), suspect=True)
    with pipeline.channel() as channel:
        channel.basic_publish("", "default", carrier)
    assert wait_until(lambda: job.status()["state"] == "completed", TIMEOUT), job.status()
    calls = Counter(what for _, _, what in pipeline.runs(job.id))
    assert calls == {"together 0 1 2 3": 1, "together 1 2 3": 1}


def carrier_of(pipeline: Pipeline, job: callboard.Job, items: range, *, suspect: bool = False) -> bytes:
    """The message that carries these items of a job of `together`."""
    mark = {"job": job.id, "item": items[0], "attempt": 1, "epoch": 1, "suspect": suspect}
    run = [{"item": n, "args": [], "kwargs": {"number": n}} for n in items]
    return json.dumps(
        {
            "queue_name": "default", "actor_name": "together", "args": [], "kwargs": {},
            "options": {"callboard": mark, "callboard_chunk": run},
            "message_id": f"{job.id}-carrier", "message_timestamp": 0,
        }
    ).encode()  # fmt: skip


def test_a_malformed_chunk_is_dead_lettered(pipeline: Pipeline) -> None:
    job = pipeline.submit("together", {"number": 1})
    pipeline.ended(job)
    whole = json.loads(carrier_of(pipeline, job, range(2)))
    for run in ([], 7, [{"item": 0}], {"item": 0}):
        whole["options"]["callboard_chunk"] = run
        whole["message_id"] = f"odd-{run}"
        with pipeline.channel() as channel:
            channel.basic_publish("", "default", json.dumps(whole).encode())
        _, body = pipeline.dead_letter(lambda _, body: json.loads(body)["message_id"].startswith("odd"))
        assert json.loads(body)["message_id"] == f"odd-{run}"


def test_the_items_of_a_chunk_wait_for_a_worker_that_has_their_actor(pipeline: Pipeline) -> None:
    pipeline.conn.execute(
        "INSERT INTO callboard.actors (name, queue) VALUES ('nobody_has', 'default') ON CONFLICT DO NOTHING"
    )
    job = pipeline.submit("nobody_has", *range(40), chunk=20)
    pipeline.broker.runtime.publish_job(job.id)  # type: ignore[attr-defined]
    kept = "SELECT count(*) FROM callboard.outbox WHERE job_id = %s AND due_at = '9999-01-01Z'"
    if wait_until(lambda: job.status()["queued"] > 0, 5):
        assert wait_until(lambda: pipeline.conn.execute(kept, (job.id,)).fetchone() == (40,), TIMEOUT)
    job.cancel()


@pytest.mark.parametrize("chunk", [0, -1, 1001, True, "5", 2.0])
def test_a_chunk_size_that_makes_no_sense_is_refused(chunk: Any, pipeline: Pipeline) -> None:
    with pytest.raises(ValueError, match="chunk must be a whole number from 1 to 1000"):
        pipeline.submit("work", 1, chunk=chunk)


def test_an_async_batch_is_refused() -> None:
    async def gently(items: list[int]) -> None: ...

    with pytest.raises(TypeError, match="is async"):
        callboard.batch(gently)  # type: ignore[arg-type]


def test_a_function_that_takes_no_list_is_no_batch() -> None:
    def pairs(left: list[int], right: list[int]) -> None: ...

    def nothing() -> None: ...

    def by_name(*, items: list[int]) -> None: ...

    def with_more(items: list[int], model: str = "small", *more: int) -> None: ...

    @wraps(pairs)
    def filled(*args: Any) -> None: ...

    for function in (pairs, nothing, by_name):
        with pytest.raises(TypeError, match=f"{function.__name__}.* gets one argument, a list"):
            callboard.batch(function)  # type: ignore[arg-type]
    for taken in (with_more, filled, len):
        callboard.batch(taken)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"not Actor\(.*put it below @dramatiq.actor"):
        callboard.batch(
            dramatiq.Actor(
                with_more, broker=StubBroker(), actor_name="above", queue_name="default", priority=0, options={}
            )
        )


def test_a_batch_that_is_called_directly_gets_a_list_of_one() -> None:
    @dramatiq.actor(broker=StubBroker())
    @callboard.batch
    def double(items: list[Any]) -> list[Any]:
        return [item if isinstance(item, Exception) else [item, item] for item in items]

    assert double(4) == [4, 4]
    assert double(4, 5) == [[4, 5], [4, 5]]
    assert double(a=1) == [{"a": 1}, {"a": 1}]
    with pytest.raises(KeyError):
        double(KeyError("odd"))


def test_a_worker_on_a_stock_broker_takes_chunks_apart(
    postgres_url: str, template: str, broker: Broker, tmp_path: Path
) -> None:
    with running_pipeline(postgres_url, template, broker, ["work"]) as pipeline:
        job = pipeline.submit("work", *mixed(60), chunk=20)
        assert wait_until(lambda: job.status()["queued"] == 60, TIMEOUT)
        assert wait_until(lambda: pipeline.ready("default") == 3, TIMEOUT)
        worker = Worker(["tests.support.stock_broker"], tmp_path / "stock.log", env=pipeline.environment)
        try:
            worker.start()
            pipeline.ended(job)
            status = job.status()
            assert (status["succeeded"], status["failed"], status["skipped"]) == (48, 6, 6)
            assert wait_until(lambda: worker.output.count(" was skipped") >= 6, TIMEOUT)  # its master passes it on
            assert worker.output.count(" was skipped") == 6
        finally:
            worker.stop()
            worker.kill()
        assert pipeline.drift() == []
