"""Submissions: any iterable becomes one job, without blocking and in bounded memory; and their errors."""

import asyncio
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any

import dramatiq
import psycopg
import pytest
from dramatiq import Message
from pika.exceptions import ChannelClosedByBroker

import callboard
from callboard.middleware.submission import enqueue as sending
from callboard.middleware.submission import submission
from callboard.middleware.tracking import runtime_of
from callboard.sql import limits
from callboard.sql.pool import connect
from callboard.sql.rows import WorkerInfo
from callboard.sql.signature import Signature
from callboard.sql.writes import sweep as sweep_writes
from callboard.sql.writes import workers
from tests.support.clients import client
from tests.support.databases import waits
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.programs import PEAK
from tests.support.timer import Timer
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

CHUNK = submission.CHUNK_ITEMS


@pytest.fixture(scope="module")
def pipeline(postgres_url: str, template: str, broker: Broker) -> Iterator[Pipeline]:
    """A broker without a worker."""
    with running_pipeline(postgres_url, template, broker, ["work", "noted"]) as made:
        yield made
        assert made.drift() == []


def test_no_items_are_a_completed_job(pipeline: Pipeline) -> None:
    status = pipeline.submit("work").status()
    assert (status["state"], status["total"], status["progress"]) == ("completed", 0, 1.0)


def test_items_are_arguments_by_their_shape(pipeline: Pipeline) -> None:
    items = list(pipeline.submit("work", {"a": 1}, [1, "b"], (2,), "text", None, 1e16).items())
    assert [item["kwargs"] for item in items] == [{"a": 1}, {}, {}, {}, {}, {}]
    assert [item["args"] for item in items] == [[], [1, "b"], [2], ["text"], [None], [1e16]]


def test_the_planner_has_statistics_of_the_stored_items_before_they_run(pipeline: Pipeline) -> None:
    pipeline.conn.execute("ALTER TABLE callboard.items SET (autovacuum_enabled = off)")
    callboard.submit("work", range(4 * CHUNK))
    known = "SELECT 5 * relpages >= pg_relation_size(oid) / 8192 FROM pg_class WHERE oid = 'callboard.items'::regclass"
    assert pipeline.conn.execute(known).fetchone() == (True,)


def test_a_failing_analyze_does_not_stop_a_submission(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> None:
        raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")

    monkeypatch.setattr(sweep_writes, "analyze_grown_tables", fails)
    assert callboard.submit("work", range(CHUNK + 1)).status()["total"] == CHUNK + 1


def breaking_off(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("the file ends here")


def test_a_source_that_breaks_off_fails_its_job_with_the_reason(pipeline: Pipeline) -> None:
    with pytest.raises(OSError, match="the file ends here"):
        callboard.submit("work", breaking_off(CHUNK + 10), name="breaks off")
    row = pipeline.conn.execute("SELECT id FROM callboard.jobs WHERE name = 'breaks off'").fetchone()
    assert row is not None
    status = callboard.get(row[0]).status()
    assert status["state"] == "failed"
    assert "OSError: the file ends here" in status["reason"]
    assert status["total"] == CHUNK


def test_a_source_with_a_key_is_taken_up_where_it_broke_off(pipeline: Pipeline) -> None:
    with pytest.raises(OSError, match="the file ends here"):
        callboard.submit("work", breaking_off(CHUNK + 10), key="again")
    job = callboard.submit("work", range(CHUNK + 20), key="again")
    assert job.status()["sealed"]
    assert job.status()["total"] == CHUNK + 20
    assert [item["args"] for item in job.items()] == [[n] for n in range(CHUNK + 20)]
    assert callboard.submit("work", range(CHUNK + 20), key="again").id == job.id
    assert job.status()["total"] == CHUNK + 20


def test_a_source_that_changed_since_it_broke_off_is_refused(pipeline: Pipeline) -> None:
    """As when a row was removed, or a query has no ORDER BY: items would be lost, and others be there twice."""
    with pytest.raises(OSError, match="the file ends here"):
        callboard.submit("work", breaking_off(CHUNK + 10), key="changed")
    for items in (range(1, CHUNK + 20), range(5)):
        with pytest.raises(callboard.KeyInUse):
            callboard.submit("work", items, key="changed")
    job = callboard.submit("work", range(CHUNK + 10), key="changed")
    assert [item["args"] for item in job.items()] == [[n] for n in range(CHUNK + 10)]


@pytest.mark.parametrize(
    ("items", "options", "differs"),
    [
        ([2, 1], {}, "other items than the first 2 of these"),
        ([1], {}, "2 items, and these are 1"),
        ([1, 2, 3], {}, "2 items, and these are more"),
        ([1, 2], {"item_key": str}, "other items"),
        ([1, 2], {"rate": "1/s", "chunk": 5}, r"other options \(chunk, rate\)"),
        ([1, 2], {"metadata": {"a": 1}, "delay": "3h"}, r"other options \(at, metadata\)"),
        ([1, 2], {"on_fail": "noted", "name": "another"}, r"other options \(callbacks\)"),
    ],
)
def test_a_key_is_of_one_submission(
    items: list[int], options: dict[str, Any], differs: str, pipeline: Pipeline
) -> None:
    given: dict[str, Any] = {"key": f"one of {differs}", "delay": "2h"}
    job = callboard.submit("work", [1, 2], **given)
    assert callboard.submit("work", (n for n in (1, 2)), **given).id == job.id
    with pytest.raises(callboard.KeyInUse, match=f"that of job {job.id}, which was submitted with {differs}"):
        callboard.submit("work", items, **{**given, **options})
    again = {**given, **options, "key_reuse": True}
    with pytest.raises(callboard.KeyInUse):  # it is not over
        callboard.submit("work", items, **again)
    job.cancel()
    assert wait_until(lambda: job.status()["state"] == "cancelled", TIMEOUT)
    other = callboard.submit("work", items, **again)
    assert (other.status()["total"], other.status()["key"]) == (len(items), given["key"])
    assert job.status()["key"] is None


def test_a_span_counts_from_the_databases_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of this machine may be wrong; and the same words are the same submission an hour later."""

    class Kind(type):
        def __instancecheck__(cls, thing: object) -> bool:
            return isinstance(thing, datetime)

    class Behind(metaclass=Kind):
        fromisoformat = datetime.fromisoformat

        @staticmethod
        def now(tz: Any = None) -> datetime:
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr(limits, "datetime", Behind)
    job = callboard.submit("work", [1], delay="30m", deadline=timedelta(hours=2), key="spans")
    job.limit(deadline="3h")
    row = pipeline.conn.execute(
        "SELECT extract(epoch FROM not_before - now()), extract(epoch FROM deadline - now()), limits"
        " FROM callboard.jobs WHERE id = %s", (job.id,)
    ).fetchone()  # fmt: skip
    assert row is not None
    assert 1700 < row[0] <= 1800
    assert 10700 < row[1] <= 10800
    assert row[2].keys() == {"at", "deadline"}


@pytest.mark.parametrize("error", [None, ZeroDivisionError()])
@pytest.mark.usefixtures("pipeline")
def test_a_block_that_ends_elsewhere_is_sealed_and_says_so(error: Exception | None) -> None:
    """A web framework runs the steps of a generator in a thread each: the block's end knows nothing of its begin."""
    block = callboard.job("a block")
    job = copy_context().run(block.__enter__)
    says = pytest.raises(RuntimeError, match=f"the block of job {job.id} ends in another thread or task than it began")
    with nullcontext() if error else says:
        assert not block.__exit__(type(error) if error else None, error, None)
    assert job.status()["sealed"]


def test_a_block_that_ends_before_one_in_it_says_so_and_no_ended_one_gets_sends(pipeline: Pipeline) -> None:
    """In generators of one thread whose steps alternate."""
    outer, inner = callboard.job("outer"), callboard.job("inner")
    first, second = outer.__enter__(), inner.__enter__()
    with pytest.raises(RuntimeError, match=f"of job {first.id} ends before the inner block of job {second.id}"):
        outer.__exit__(None, None, None)
    pipeline.actor("noted").send(1)
    assert not inner.__exit__(None, None, None)
    pipeline.actor("noted").send(2)
    assert (first.status()["total"], second.status()["total"]) == (0, 1)
    assert first.status()["sealed"]


def test_a_wait_that_is_too_short_says_how_the_job_stands(pipeline: Pipeline) -> None:
    job = callboard.submit("work", [1], delay="1h")
    with pytest.raises(TimeoutError, match=f"job {job.id} is pending after 0.01 s"):
        job.wait(0.01)
    with pytest.raises(TimeoutError, match=f"job {job.id} is (pending|unknown) after 0.01 s"):
        asyncio.run(job.await_done(0.01))
    job.cancel()


def test_of_two_submissions_with_a_key_one_is_told_how_it_gets_the_job(pipeline: Pipeline) -> None:
    """As of two requests at the same moment; the other has stored all items when this one is about to."""
    others = []

    def source() -> Iterator[int]:
        others.append(callboard.submit("noted", [1, 2], key="at once"))
        yield from (1, 2)

    with pytest.raises(callboard.SubmittedElsewhere, match="submit the same again with its key to get the job"):
        callboard.submit("noted", source(), key="at once")
    assert callboard.submit("noted", [1, 2], key="at once").id == others[0].id
    assert others[0].status()["total"] == 2


def test_an_item_key_is_stored_once(pipeline: Pipeline) -> None:
    source = [{"sku": n % 7, "n": n} for n in range(100)]
    by_field = callboard.submit("work", source, item_key="sku")
    by_function = callboard.submit("work", source, item_key=lambda item: item["sku"])
    for job in (by_field, by_function):
        assert [item["kwargs"]["n"] for item in job.items()] == list(range(7))


def test_long_arguments_are_read_whole(pipeline: Pipeline) -> None:
    texts = ["short", "é" * 10_000, "x" * 1_000_000]
    assert [item["args"] for item in pipeline.submit("work", *texts).items()] == [[text] for text in texts]


def test_an_unknown_actor_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(callboard.UnknownActor, match="no actor 'nobody'"):
        callboard.submit("nobody", [1])
    with pytest.raises(callboard.KeyInUse, match=r"other options \(actor\)"):
        callboard.submit("noted", [1], key=_keyed("work"))


def _keyed(actor: str) -> str:
    callboard.submit(actor, [1], key=f"of {actor}")
    return f"of {actor}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key": "k" * 301}, "key must be a text of at most 300 characters"),
        ({"key": 5}, "key must be a text of at most 300 characters, not 5"),
        ({"key": "a\x00"}, "key must not contain a NUL character"),
        ({"tenant": "\ud800"}, "tenant must not contain a NUL character"),
        ({"name": "a\x00"}, "name must not contain a NUL character"),
        ({"created_by": ["me"]}, "created_by must be a text"),
        ({"metadata": {"when": object()}}, "metadata must be a dict that JSON can hold"),
        ({"metadata": {"ratio": math.nan}}, "metadata must be a dict that JSON can hold"),
        ({"metadata": {"text": "a\x00"}}, "metadata must be a dict of values that the database can hold"),
        ({"metadata": {"text": "\ud800"}}, "metadata must be a dict of values that the database can hold"),
        ({"metadata": [1]}, "metadata must be a dict"),
        ({"metadata": []}, "metadata must be a dict"),
        ({"metadata": ""}, "metadata must be a dict"),
        ({"name": ""}, "name must not be empty"),
        ({"name": 0}, "name must be a text"),
        ({"key": " "}, "key must not be empty"),
        ({"tenant": False}, "tenant must be a text"),
        ({"priority": False}, "priority must be a whole number"),
        ({"priority": 0.0}, "priority must be a whole number"),
        ({"priority": ""}, "priority must be a whole number"),
        ({"key_reuse": "false"}, "key_reuse must be True or False"),
        ({"on_complete": b""}, "on_complete takes actors"),
        ({"metadata": {"page": "x" * 300_000}}, "metadata has 300,012 bytes as JSON, and 262,144 are allowed"),
    ],
)
def test_an_option_that_a_row_cannot_hold_is_refused_by_name(
    options: dict[str, Any], says: str, pipeline: Pipeline
) -> None:
    with pytest.raises(ValueError, match=says):
        callboard.submit("work", [1], **options)
    kept = callboard.submit("work", [1], metadata={"text": "\\u0000 is no NUL"}).status()["metadata"]
    assert kept == {"text": "\\u0000 is no NUL"}


@pytest.mark.parametrize(
    ("items", "options", "says"),
    [
        ([1, 2, object()], {}, "item 2 can't be written as a message"),
        ([1, "x" * 1_100_000], {}, "item 1 has 1,100,0.. bytes, and 1,048,576 are allowed"),
        ([{"sku": 1}, {"other": 2}], {"item_key": "sku"}, "item 1 has no item key: KeyError"),
        ([1], {"item_key": "sku"}, "item 0 has no item key: TypeError"),
        ([{"sku": None}], {"item_key": "sku"}, "item 0 has no item key: it is None"),
        ([{"sku": math.nan}], {"item_key": "sku"}, "item 0 has no item key: ValueError"),
        ([1], {"item_key": lambda _: object()}, "item 0 has no item key: TypeError: its type object can't be one"),
    ],
)
def test_a_bad_item_is_named_by_its_number(
    items: list[Any], options: dict[str, Any], says: str, pipeline: Pipeline
) -> None:
    with pytest.raises(callboard.BadItem, match=says):
        callboard.submit("work", items, **options)


@pytest.mark.parametrize(
    "odd",
    [
        {"message_id": None}, {"message_id": 5}, {"message_id": "a\x00"}, {"queue_name": ""}, {"actor_name": ""},
        {"actor_name": "half \ud800"}, {"kwargs": []}, {"options": []},
    ],
)  # fmt: skip
def test_a_message_that_no_worker_could_read_is_not_sent(odd: dict[str, Any], pipeline: Pipeline) -> None:
    """A row without a message id would count as one of a submission, and a queue without a name hold up others."""
    message = pipeline.actor("work").message(1)
    with callboard.job("odd messages") as job, pytest.raises((callboard.BadItem, TypeError)):
        pipeline.broker.enqueue(message.copy(**odd))
    assert job.status()["total"] == 0


@pytest.mark.parametrize("delay", [math.nan, math.inf, 10**18])
def test_a_delay_that_is_no_span_of_time_is_refused(delay: Any, pipeline: Pipeline) -> None:
    with pytest.raises(callboard.BadItem, match="a delay must be a number of milliseconds"):
        pipeline.actor("work").send_with_options(args=(1,), delay=delay)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda job: callboard.get(job.id + 0.9), "the id of a job must be an int, not"),
        (lambda _: callboard.get("1"), "the id of a job must be an int, not '1'"),  # type: ignore[arg-type]
        (lambda job: list(job.items(key=1)), "key must be a text"),
        (lambda job: list(job.items(error=1)), "error must be a text"),
        (lambda job: list(job.items(stage=False)), "has no stage False"),
        (lambda job: job.cancel(dry_run="false"), "dry_run must be True or False"),
        (lambda job: job.retry(dry_run=0), "dry_run must be True or False"),
        (lambda job: job.retry(items={1: 2}), "items must be a list"),
        (lambda job: job.retry(items=[1.0]), "items must be whole numbers"),
        (lambda job: job.limit(priority=False), "priority must be a whole number"),
        (lambda job: job.run_again(name=""), "name must not be empty"),
        (lambda job: job.run_again(metadata=[]), "metadata must be a dict"),
        (lambda job: job.run_again(b"failed"), "states must be a list"),
        (lambda _: callboard.job("", metadata={}).__enter__(), "name must not be empty"),
        (lambda _: callboard.job("block", metadata=[]).__enter__(), "metadata must be a dict"),  # type: ignore[arg-type]
        (lambda _: callboard.stages("", [callboard.Stage("work", items=[])]), "name must not be empty"),
        (lambda _: callboard.stages("s", [callboard.Stage("work", [], name="")]), "name must not be empty"),
    ],
)
def test_nonsense_of_another_type_is_refused_and_not_taken_for_something_else(
    ask: Callable[[callboard.Job], object], says: str, pipeline: Pipeline
) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        ask(pipeline.submit("work"))


def test_what_is_asked_of_a_job_that_can_not_be_there_is_an_error(pipeline: Pipeline) -> None:
    with pytest.raises(callboard.NoSuchJob, match="there is no job 1000000000000000000000000000000"):
        callboard.get(10**30)
    with pytest.raises(ValueError, match=r"state must be one of pending, queued, .*, not 'suceeded'"):
        list(callboard.submit("work", [1]).items("suceeded"))


@pytest.fixture(scope="module")
def pay(pipeline: Pipeline) -> str:
    """The name of an actor whose function this process has."""

    @dramatiq.actor(broker=pipeline.broker)
    def pay(customer: int, amount: int = 0) -> None: ...

    return pay.actor_name


@pytest.fixture(scope="module")
def quote(pipeline: Pipeline) -> str:
    """The name of an actor whose arguments a worker announced."""
    known = Signature("quote", ("customer",), frozenset({"customer"}), frozenset({"customer"}))
    info = WorkerInfo("h", 1, 1, "", {"quote": "default"}, {"quote": known})
    workers.stop_worker(pipeline.conn, workers.register_worker(pipeline.conn, info))
    return "quote"


def test_items_that_do_not_fit_the_actor_are_refused_before_anything_is_stored(pay: str, pipeline: Pipeline) -> None:
    before = pipeline.conn.execute("SELECT count(*) FROM callboard.items").fetchone()
    says = "item 1 does not fit its actor: pay has no argument 'custmer' and needs 'customer'"
    with pytest.raises(callboard.BadItem, match=says):
        callboard.submit(pay, [{"customer": 1}, {"custmer": 2}])
    with pytest.raises(callboard.BadItem, match="pay takes 2 arguments by position, not 3"):
        callboard.stages("staged", [callboard.Stage(pay, items=[(1, 2, 3)])])
    assert pipeline.conn.execute("SELECT count(*) FROM callboard.items").fetchone() == before


def test_lanes_by_an_argument_that_the_actor_lacks_are_refused(pay: str, quote: str, pipeline: Pipeline) -> None:
    for actor in (pay, quote):
        lanes = f"concurrency_by: {actor} has no argument 'custmer_id'; it has 'customer'"
        with pytest.raises(ValueError, match=lanes):
            callboard.submit(actor, [1], concurrency_by="custmer_id=5")
        with pytest.raises(callboard.BadItem, match="item 0 has no argument 'customer' for concurrency_by"):
            callboard.submit(actor, [1], concurrency_by="customer=5")
        with pytest.raises(ValueError, match=lanes):
            callboard.stages("staged", [callboard.Stage(actor, items=[1])], concurrency_by="custmer_id=5")
    job = callboard.submit(quote, [{"customer": 1}], concurrency_by="customer=5")
    with pytest.raises(ValueError, match="quote has no argument"):
        job.limit(concurrency_by="custmer_id=5")
    job.limit(concurrency_by="customer=6")


@pytest.mark.parametrize("items", ["abc", b"abc", {"a": 1}, 5, None])
def test_one_item_in_the_place_of_many_is_refused(items: Any, pipeline: Pipeline) -> None:
    with pytest.raises(TypeError, match=r"items must be an iterable of items, not .*: for one item, a list of one"):
        callboard.submit("work", items)


def test_an_async_source_is_refused_where_it_cant_be_read(pipeline: Pipeline) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1

    refused = "items must be an iterable, not <async_generator .*asubmit"
    with pytest.raises(TypeError, match=refused):
        callboard.submit("work", source(), name="not made")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=refused):
        callboard.stages("not made", [callboard.Stage("work", items=source())])  # type: ignore[arg-type]
    made = pipeline.conn.execute("SELECT count(*) FROM callboard.jobs WHERE name = 'not made'").fetchone()
    assert made == (0,)


def test_a_function_that_is_no_actor_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(TypeError, match="actor must be an actor or its registered name, not <built-in function len>"):
        callboard.submit(len, [1])  # type: ignore[arg-type]


class Frame:
    """What pandas' DataFrame is to `submit`."""

    def __iter__(self) -> Iterator[str]:
        return iter(["a column", "another"])

    def itertuples(self, *, index: bool = True) -> Iterator[tuple[int, ...]]:
        raise AssertionError


@pytest.mark.usefixtures("pipeline")
def test_a_data_frame_is_not_read_as_its_columns() -> None:
    with pytest.raises(TypeError, match=r"items must be an iterable .* give its itertuples\(index=False\), or to_dict"):
        callboard.submit("work", Frame())


def test_a_database_without_the_schema_is_named(empty_database_url: str, amqp_url: str) -> None:
    with client({"DATABASE_URL": empty_database_url, "AMQP_URL": amqp_url}, ["work"]) as broker:
        with pytest.raises(callboard.SchemaError, match="run `callboard migrate`"):
            callboard.submit("work", [1])
        with pytest.raises(
            callboard.NotStored, match="no callboard schema that fits this code; run `callboard migrate`"
        ):
            broker.get_actor("work").send(1)


@pytest.mark.parametrize(("table", "column"), [("jobs", "chunk"), ("items", "args")])
def test_a_schema_of_an_older_release_is_named(database_url: str, amqp_url: str, table: str, column: str) -> None:
    """It lacks a column of jobs, or of items."""
    with connect(database_url) as conn:
        conn.execute(f"ALTER TABLE callboard.{table} RENAME COLUMN {column} TO other".encode())
        conn.execute("UPDATE callboard.migrations SET number = 0, name = '0000_of_the_past'")
    with client({"DATABASE_URL": database_url, "AMQP_URL": amqp_url}, ["work"]) as broker:
        with pytest.raises(callboard.SchemaError, match="behind this code by 0001_schema: run `callboard migrate`"):
            callboard.submit("work", [1])
        if table == "items":
            with pytest.raises(callboard.NotStored, match="that fits this code; run `callboard migrate`"):
                broker.get_actor("work").send(1)


def test_a_send_takes_no_more_than_an_item_may_have(pipeline: Pipeline) -> None:
    with callboard.job("sent") as job:
        with pytest.raises(callboard.BadItem, match=r"1,100,0.. bytes of arguments, and 1,048,576 are allowed"):
            pipeline.actor("work").send("x" * 1_100_000)
        pipeline.actor("work").send(1)
    assert [item["args"] for item in job.items()] == [[1]]


async def slowly(count: int) -> AsyncIterator[int]:
    for n in range(count):
        if n % 1000 == 0:
            await asyncio.sleep(0)
        yield n


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_event_loop_runs_while_100000_items_are_stored(kind: str, pipeline: Pipeline) -> None:
    async def main() -> tuple[callboard.Job, list[float]]:
        source = slowly(100_000) if kind == "async" else iter(range(100_000))
        storing = asyncio.create_task(callboard.asubmit("work", source))
        lags = []
        while not storing.done():
            timer = Timer()
            await asyncio.sleep(0.005)
            lags.append(timer.seconds - 0.005)
        return await storing, sorted(lags)

    job, lags = asyncio.run(main())
    assert job.status()["total"] == 100_000
    assert len(lags) > 20
    # Of a busy machine the loop waits for its turn now and then, and not every other time.
    assert lags[len(lags) // 2] <= 0.05, lags[-10:]
    assert lags[int(len(lags) * 0.95)] <= 0.5, lags[-10:]


def test_an_async_source_that_breaks_off_breaks_its_job_off(pipeline: Pipeline) -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise OSError("the stream ends here")

    with pytest.raises(OSError, match="the stream ends here"):
        asyncio.run(callboard.asubmit("work", broken(), name="broken stream"))
    row = pipeline.conn.execute("SELECT reason FROM callboard.jobs WHERE name = 'broken stream'").fetchone()
    assert row is not None
    assert "the stream ends here" in row[0]


@pytest.mark.parametrize("waits", [True, False])
def test_a_cancelled_submission_breaks_off_and_leaves_its_source(waits: bool, pipeline: Pipeline) -> None:
    """A source that waits for its next item, and one that always has another."""
    name, ended = f"cancelled, {waits}", False
    row = "SELECT state::text, reason FROM callboard.jobs WHERE name = %s"

    async def stream() -> AsyncIterator[int]:
        nonlocal ended
        try:
            for n in itertools.count():
                if n == 3:
                    begun.set()
                await asyncio.sleep(TIMEOUT if waits and n == 3 else 0)
                yield n
        except asyncio.CancelledError:
            ended = True
            raise

    async def main() -> None:
        submitting = asyncio.create_task(callboard.asubmit("work", stream(), name=name))
        await begun.wait()
        stored = lambda: pipeline.conn.execute(row, (name,)).rowcount  # noqa: E731
        assert await asyncio.to_thread(wait_until, stored, TIMEOUT)
        timer = Timer()
        submitting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submitting
        assert timer.seconds < TIMEOUT / 2

    begun = asyncio.Event()
    asyncio.run(main())
    found = pipeline.conn.execute(row, (name,)).fetchone()
    assert found is not None
    assert found[0] == "failed"
    assert "its submission broke off" in found[1]
    assert ended or not waits


def test_a_bad_item_ends_an_async_source_soon(pipeline: Pipeline) -> None:
    read = 0

    async def stream() -> AsyncIterator[Any]:
        nonlocal read
        for n in range(1_000_000):
            read += 1
            if n % 100 == 0:
                await asyncio.sleep(0.001)
            yield object() if n == 3 else n

    with pytest.raises(callboard.BadItem, match="item 3"):
        asyncio.run(callboard.asubmit("work", stream()))
    assert read < 50_000


MANY_ITEMS = f"""
{PEAK}
import callboard, dramatiq
broker = callboard.RabbitmqBroker()
dramatiq.set_broker(broker)
@dramatiq.actor
def work(number): ...
broker.runtime.publish_job = lambda job: None  # rows only
before = peak()
job = callboard.submit(work, ({{"number": n}} for n in range(500_000)))
assert job.status()["total"] == 500_000
job = callboard.submit(work, ({{"number": "x" * 204_800}} for n in range(1_000)))
assert job.status()["total"] == 1_000
print(before, peak())
"""


def test_half_a_million_items_or_a_thousand_large_ones_need_no_more_memory_than_a_few(pipeline: Pipeline) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MANY_ITEMS], env={**os.environ, **pipeline.environment}, check=True, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    before, most = map(int, done.stdout.split())
    assert most <= 150
    assert most - before <= 60


# Messages ------------------------------------------------------------------------------------------------------------


def test_messages_carry_real_properties(database_url: str, amqp_url: str, pipeline: Pipeline) -> None:
    environment = {"DATABASE_URL": database_url, "AMQP_URL": amqp_url}
    with client(environment, ["work"]) as broker:
        job = callboard.submit("work", [{"number": 5}])
        sent = broker.get_actor("work").send(6)
        found: list[tuple[Any, Message[Any]]] = []
        other = Pipeline(environment, pipeline.conn, broker)

        def look() -> bool:
            with suppress(ChannelClosedByBroker), other.channel() as channel:
                while len(found) < 2:
                    method, properties, body = channel.basic_get("default", auto_ack=True)
                    if method is None:
                        return False
                    found.append((properties, Message.decode(body)))
            return len(found) == 2

        assert wait_until(look, TIMEOUT, pause=0.1)
    by_id = {properties.message_id: (properties, message) for properties, message in found}
    properties, message = by_id[f"{job.id}-0"]
    assert (properties.correlation_id, properties.type, properties.app_id) == (f"{job.id}/0", "work", "callboard")
    assert properties.content_type == "application/json"
    assert properties.delivery_mode == 2
    assert abs(properties.timestamp - time.time()) < 60
    assert message.kwargs == {"number": 5}
    assert by_id[sent.message_id][1].args == (6,)
    assert by_id[sent.message_id][1].message_timestamp == sent.message_timestamp


def test_a_send_that_the_database_refuses_fails_alone(database_url: str, amqp_url: str) -> None:
    """Three sends wait and are stored together: one has an impossible id, the others are correct."""
    with (
        client({"DATABASE_URL": database_url, "AMQP_URL": amqp_url}, ["work"]) as broker,
        connect(database_url) as conn,
        ThreadPoolExecutor() as threads,
    ):
        good = [broker.get_actor("work").message(n) for n in range(2)]
        conn.execute("ALTER TABLE callboard.items ADD CONSTRAINT refused CHECK (message_id <> 'impossible')")
        bad = broker.get_actor("work").message(2).copy(message_id="impossible")
        journal = runtime_of(broker).journal
        with conn.transaction():
            conn.execute("LOCK TABLE callboard.jobs")
            first = threads.submit(broker.enqueue, good[0])
            assert wait_until(lambda: waits(database_url), TIMEOUT)
            rest = [threads.submit(broker.enqueue, message) for message in (bad, good[1])]
            assert wait_until(lambda: len(journal._sends) == 2, TIMEOUT)
        assert first.result(TIMEOUT) is good[0]
        assert rest[1].result(TIMEOUT) is good[1]
        with pytest.raises(callboard.NotStored, match="refused"):
            rest[0].result(TIMEOUT)
        row = conn.execute("SELECT count(*) FROM callboard.items").fetchone()
    assert row == (2,)


def test_a_send_without_a_database_raises_and_sends_nothing(
    amqp_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
) -> None:
    """Nor is it sent later, since the caller may send it again."""
    monkeypatch.setattr(sending, "SEND_SECONDS", 1.0)
    with (
        client({"DATABASE_URL": database_url, "AMQP_URL": amqp_url}, ["work"]) as broker,
        connect(database_url) as conn,
    ):
        runtime_of(broker).process.pool.wait(TIMEOUT)
        with conn.transaction():  # as good as away: nothing answers
            conn.execute("LOCK TABLE callboard.jobs")
            with pytest.raises(callboard.NotStored, match="DATABASE_URL"):
                broker.get_actor("work").send(1)
            with pytest.raises(callboard.NotStored, match="DATABASE_URL"):
                broker.get_actor("work").send(2)
        monkeypatch.setattr(sending, "SEND_SECONDS", TIMEOUT)
        after = broker.get_actor("work").send(3)
        stored = [row[0] for row in conn.execute("SELECT message_uuid::text FROM callboard.items ORDER BY item")]
        assert after.message_id in stored
        assert len(stored) <= 2  # the first was being stored; the second was withdrawn
