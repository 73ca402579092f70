"""Midnight (UTC) comes between two deliveries of a message that is recorded on sight: it counts once, in the standing
job of either day.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq
import pytest

from callboard.middleware.journal.journal import Send
from callboard.middleware.publish.send_leases import SendLeases
from callboard.middleware.submission import send_store
from callboard.middleware.submission.enqueue import foreign_item
from callboard.middleware.submission.send_store import SendStore
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import Outgoing
from callboard.sql.writes import actions, sends
from callboard.sql.writes.requests import Requester
from tests.support.jobs import let_midnight_pass, record
from tests.support.pipeline import TIMEOUT, running_pipeline
from tests.support.process_parts import process_on
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

MESSAGE: dramatiq.Message[None] = dramatiq.Message("default", "work", (1,), {}, {})


@pytest.fixture
def stores(database_url: str) -> Iterator[list[SendStore]]:
    """The stores of two processes."""
    with process_on(database_url) as one, process_on(database_url) as other:
        yield [SendStore(process, SendLeases(), lambda _: None) for process in (one, other)]


def store(conn: Conn, store: SendStore, *, redelivered: bool = False) -> Outgoing:
    """Record MESSAGE on sight."""
    send = Send(foreign_item(MESSAGE), redelivered=redelivered)
    store.store(conn, [send])
    return send.stored.result(0)


def other_message() -> Send:
    return Send(foreign_item(dramatiq.Message("default", "work", (2,), {}, {})))


def place(out: Outgoing) -> tuple[int, int, bool]:
    return out.job, out.item, out.suspect


def test_a_message_that_comes_again_after_midnight_is_known(conn: Conn, stores: list[SendStore]) -> None:
    first = store(conn, stores[0])
    let_midnight_pass(conn)
    assert place(store(conn, stores[1], redelivered=True)) == (first.job, first.item, True)


def test_a_process_that_has_not_noticed_midnight_knows_what_another_stored_after_it(
    conn: Conn, stores: list[SendStore]
) -> None:
    unnoticed = other_message()
    stores[0].store(conn, [unnoticed])
    let_midnight_pass(conn)
    first = store(conn, stores[1])
    assert first.job != unnoticed.stored.result(0).job
    assert place(store(conn, stores[0], redelivered=True)) == (first.job, first.item, True)


def test_a_message_that_two_processes_store_at_midnight_is_stored_once(
    conn: Conn, stores: list[SendStore], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has not noticed midnight, and looks for the message before the other stores it."""
    stores[0].store(conn, [other_message()])
    let_midnight_pass(conn)
    stores[1].store(conn, [other_message()])
    look, looked, go = sends.items_by_key, threading.Event(), threading.Event()

    def look_and_wait(*args: Any) -> Any:
        found = look(*args)
        if not looked.is_set():
            looked.set()
            assert go.wait(TIMEOUT)
        return found

    monkeypatch.setattr(send_store, "items_by_key", look_and_wait)
    found: dict[int, Outgoing] = {}

    def store_by(process: int) -> None:
        with connect(database_url) as own:
            found[process] = store(own, stores[process], redelivered=process == 1)

    threads = [threading.Thread(target=store_by, args=(process,)) for process in range(2)]
    threads[0].start()
    assert looked.wait(TIMEOUT)
    threads[1].start()
    waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    assert wait_until(lambda: conn.execute(waits).rowcount == 1 or not threads[1].is_alive(), TIMEOUT)
    go.set()
    for thread in threads:
        thread.join(TIMEOUT)
    assert place(found[1]) == (found[0].job, found[0].item, True)


def test_a_message_that_is_delivered_again_long_after_its_item_ended_is_known(
    conn: Conn, stores: list[SendStore]
) -> None:
    """RabbitMQ was away over midnight, and has not got the acknowledgement. A message that is sent anew runs again."""
    first = store(conn, stores[0])
    record(conn, first.job, {"succeeded": [first.item]})
    conn.execute("UPDATE callboard.items SET finished_at = now() - interval '2 h' WHERE job_id = %s", (first.job,))
    let_midnight_pass(conn)
    assert place(store(conn, stores[1], redelivered=True)) == (first.job, first.item, True)
    again = store(conn, stores[1])
    assert (again.job != first.job, again.suspect) == (True, False)
    assert place(store(conn, stores[0], redelivered=True)) == (again.job, again.item, True)


def test_a_message_that_waits_for_its_time_is_known_for_as_long_as_that(conn: Conn, stores: list[SendStore]) -> None:
    first = store(conn, stores[0])
    let_midnight_pass(conn, days=30)
    assert place(store(conn, stores[1])) == (first.job, first.item, True)


def test_a_message_of_a_job_that_was_stopped_today_stays_in_it(conn: Conn, stores: list[SendStore]) -> None:
    """The actor's next messages go to another job of the day."""
    first = store(conn, stores[0])
    actions.cancel(conn, first.job, Requester("test", "anna"))
    other = other_message()
    stores[0].store(conn, [other])
    assert other.stored.result(0).job != first.job
    assert place(store(conn, stores[0], redelivered=True)) == (first.job, first.item, True)


def test_each_message_counts_once_over_many_midnights(
    postgres_url: str, template: str, broker: Broker, tmp_path: Path
) -> None:
    """Midnight comes while messages lie in RabbitMQ, run, wait for a retry or for their time; the worker is killed."""
    with running_pipeline(postgres_url, template, broker, ["noted"], tmp_path) as pipeline:
        assert pipeline.worker is not None
        sent: list[str] = []
        for day in range(4):
            with pipeline.channel() as channel:
                for n in range(40):
                    delay = 300 if n % 10 == 0 else None
                    plain = pipeline.actor("noted").send_with_options(args=(n, 0.02), delay=delay)
                    foreign: dramatiq.Message[None] = dramatiq.Message(
                        "default", "stubborn" if delay else "noted", (n, 2 if delay else 0.02), {}, {}
                    )
                    channel.basic_publish("", "default", foreign.encode())
                    sent += [plain.message_id, foreign.message_id]
            if day == 1:
                pipeline.worker.kill()
            let_midnight_pass(pipeline.conn)
            if day == 1:
                pipeline.worker.start()
        ended = "SELECT count(*) FROM callboard.items WHERE state = 'succeeded'"
        assert wait_until(lambda: pipeline.conn.execute(ended).fetchone() == (len(sent),), TIMEOUT)
        found = [row[0] for row in pipeline.conn.execute("SELECT message_uuid::text FROM callboard.items")]
        assert sorted(found) == sorted(sent)
        # What was recorded after the last midnight is in a job of today, which goes on.
        open_days = (
            "SELECT FROM callboard.jobs WHERE finished_at IS NULL AND standing_on < (now() AT TIME ZONE 'UTC')::date"
        )
        assert wait_until(lambda: not pipeline.conn.execute(open_days).rowcount, TIMEOUT)
        assert pipeline.worker.stop() == 0
        assert pipeline.drift() == []
