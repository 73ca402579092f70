"""What an app that used Dramatiq before meets, in a real worker process."""

from collections.abc import Iterator
from typing import Any

import pika
import pytest
from dramatiq import Message

import callboard
from tests.support.jobs import let_midnight_pass
from tests.support.pipeline import TIMEOUT, Pipeline, running_pipeline
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

ACTORS = ["work", "stubborn"]


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """One worker process for all of these tests."""
    with running_pipeline(postgres_url, template, broker, ACTORS, tmp_path_factory.mktemp("existing")) as made:
        yield made
        assert made.worker is not None
        assert made.worker.stop() == 0
        assert made.drift() == []


def put(pipeline: Pipeline, body: bytes, properties: pika.BasicProperties | None = None) -> None:
    with pipeline.channel() as channel:
        channel.basic_publish("", "default", body, properties)


def item_of(pipeline: Pipeline, message_id: str) -> tuple[Any, ...]:
    """(job, item) of a message, when it is on record."""
    found: list[tuple[Any, ...]] = []

    def look() -> bool:
        where = "SELECT job_id, item FROM callboard.items WHERE message_uuid = %s"
        found.extend(pipeline.conn.execute(where, (message_id,)))
        return bool(found)

    assert wait_until(look, TIMEOUT)
    return found[0]


@pytest.mark.parametrize("carried", ["alone", "in a chunk", "foreign"])
def test_a_dead_letter_that_is_moved_back_is_a_retry_of_its_item(carried: str, pipeline: Pipeline) -> None:
    """As by "Move messages" of RabbitMQ's page, or a shovel: with its properties."""
    if carried == "foreign":
        message: Message[None] = Message("default", "stubborn", (1, 4), {}, {})
        put(pipeline, message.encode())
        number, item = item_of(pipeline, message.message_id)
        job = callboard.get(number)
    else:
        calls = [{"number": n, "wins_at": 4} for n in range(2)]
        job, item = pipeline.submit("stubborn", *calls, chunk=2 if carried == "in a chunk" else 1), 0
    mine = f'"job":{job.id},"item":{item},'.encode()
    properties, body = pipeline.dead_letter(lambda _, body: mine in body)

    def state() -> str:
        (found,) = (i for i in job.items() if i["item"] == item)
        return str(found["state"])

    assert state() == "failed"
    put(pipeline, body, properties)
    assert wait_until(lambda: state() == "succeeded", TIMEOUT)
    assert [attempt for i, attempt, _ in pipeline.runs(job.id) if i == item] == [1, 2, 3, 4]
    put(pipeline, body, properties)  # another time: its item has succeeded
    assert pipeline.only(pipeline.submit("work", {"number": 1}))["state"] == "succeeded"
    assert len([1 for i, _, _ in pipeline.runs(job.id) if i == item]) == 4
    retries = pipeline.conn.execute(
        "SELECT who FROM callboard.actions WHERE job_id = %s AND action = 'retry'", (job.id,)
    )
    assert retries.fetchall() == [("dead letters moved back",)]


def test_a_dead_letter_of_another_producer_is_a_retry_of_its_item_the_day_after(pipeline: Pipeline) -> None:
    message: Message[None] = Message("default", "stubborn", (1, 2), {}, {"max_retries": 0})
    put(pipeline, message.encode())
    job, item = item_of(pipeline, message.message_id)
    properties, body = pipeline.dead_letter(lambda _, body: message.message_id.encode() in body)
    assert b'"job"' not in body
    pipeline.conn.execute(
        "UPDATE callboard.items SET finished_at = finished_at - interval '2 h' WHERE (job_id, item) = (%s, %s)",
        (job, item),
    )
    let_midnight_pass(pipeline.conn)
    assert wait_until(lambda: callboard.get(job).status()["sealed"], TIMEOUT)
    next_one: Message[None] = Message("default", "stubborn", (2, 1), {}, {})
    put(pipeline, next_one.encode())
    assert item_of(pipeline, next_one.message_id)[0] != job
    put(pipeline, body, properties)
    states = "SELECT job_id, item, state::text FROM callboard.items WHERE message_uuid = %s"
    expected = [(job, item, "succeeded")]
    assert wait_until(lambda: pipeline.conn.execute(states, (message.message_id,)).fetchall() == expected, TIMEOUT)
    assert [attempt for i, attempt, _ in pipeline.runs(job) if i == item] == [1, 2]


def test_the_retry_of_an_item_that_a_stock_worker_ran_is_that_items(pipeline: Pipeline) -> None:
    """During a deploy some workers have Callboard, and some don't; these keep a retry in the delay queue."""
    job = pipeline.submit("stubborn", {"number": 1, "wins_at": 1}, delay="1h")
    options = {"callboard": {"job": job.id, "item": 0, "attempt": 1, "epoch": 0}, "retries": 1, "eta": 1}
    message: Message[None] = Message("default.DQ", "stubborn", (1, 1), {}, options)
    with pipeline.channel() as channel:
        channel.basic_publish("", "default.DQ", message.encode())
    assert job.wait(TIMEOUT)["succeeded"] == 1
    assert pipeline.conn.execute(
        "SELECT count(*) FROM callboard.items WHERE message_uuid = %s", (message.message_id,)
    ).fetchone() == (0,)
