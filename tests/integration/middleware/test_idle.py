"""An idle worker asks the database little, and misses nothing for it."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker

import callboard
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.process import heartbeat
from callboard.middleware.publish import publisher
from callboard.middleware.tracked_broker import TrackedBroker
from callboard.middleware.tracking import runtime_of
from callboard.sql.pool import Conn, connect
from callboard.sql.rows import DueWork
from callboard.sql.writes import actions, sweep, workers
from callboard.sql.writes.requests import Requester
from tests.support.jobs import make_job, make_worker, status
from tests.support.workers import wait_until

TIMEOUT = 300.0
ANNA = Requester("api", "anna")


class App:
    """An app with one actor, and a worker in this process that is idle."""

    def __init__(self, url: str, amqp_url: str) -> None:
        self.broker: Any = callboard.install(RabbitmqBroker(url=amqp_url), database_url=url)
        self.runs: Counter[int] = Counter()

        @dramatiq.actor(broker=self.broker)
        def work(number: int) -> None:
            self.runs[number] += 1

        self.actor = work
        self.worker = dramatiq.Worker(self.broker, worker_threads=2, worker_timeout=50)
        self.worker.start()
        self.process = runtime_of(self.broker).process
        assert wait_until(self.is_idle, TIMEOUT)

    def is_idle(self) -> bool:
        return self.process.idle

    def bring(self, job: int, item: int) -> None:
        """Publish the message of an item by hand."""
        message = self.actor.message(item).copy(options={"callboard": Stamp(job, item, 1).option()})
        super(TrackedBroker, self.broker).enqueue(message)  # type: ignore[misc]


@pytest.fixture
def app(database_url: str, amqp_url: str) -> Iterator[App]:
    made = App(database_url, amqp_url)
    yield made
    made.worker.stop()
    made.broker.close()


def wait_for_looks(monkeypatch: pytest.MonkeyPatch, pauses: Sequence[float]) -> None:
    """Have the idle worker look with these pauses in between, and the last one from then on; wait for the last."""
    left, last = list(pauses), threading.Event()

    def turn(_: DueWork) -> float:
        if len(left) == 1:
            last.set()
            return left[0]
        return left.pop(0)

    monkeypatch.setattr(heartbeat, "_turn", turn)
    assert last.wait(TIMEOUT)


def test_a_message_of_a_job_that_was_paused_meanwhile_does_not_begin(
    app: App, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for_looks(monkeypatch, pauses=[0.2, 0.2, 0.2, 600.0])  # from then on the worker does not look by itself
    job = make_job(conn, 1)
    actions.pause(conn, job, ANNA)
    assert app.is_idle()
    monkeypatch.setattr(heartbeat, "IDLE_SECONDS", TIMEOUT)
    app.bring(job, 0)
    parked = "SELECT FROM callboard.outbox WHERE job_id = %s"
    assert wait_until(lambda: conn.execute(parked, (job,)).fetchone() is not None, TIMEOUT)
    assert not app.is_idle()
    assert not app.runs
    actions.resume(conn, job, ANNA)
    assert wait_until(lambda: status(conn, job)["state"] == "completed", TIMEOUT)
    assert app.runs == {0: 1}


def test_what_other_processes_stored_begins_and_then_the_worker_is_idle_again(
    app: App, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "SENDER_POLL_SECONDS", 600.0)
    wait_for_looks(monkeypatch, pauses=[0.2] * 4)  # its publisher has made its last poll
    job = make_job(conn, 3, published=0)
    assert wait_until(lambda: status(conn, job)["state"] == "completed", TIMEOUT)
    assert wait_until(app.is_idle, TIMEOUT)


def test_the_sweep_rests_until_there_is_something_to_sweep(conn: Conn, database_url: str) -> None:
    worker = make_worker(conn)

    def sweeps(holder: str) -> bool | None:
        renewed = sweep.renew_lease(conn, holder, 60, 60)
        return None if renewed is None else renewed.anything

    assert workers.beat(conn, worker, None).sweep
    assert sweep.acquire_lease(conn, "one", 60, 60)
    assert not workers.beat(conn, worker, None).sweep, "one sweeps"
    assert sweeps("one") is False
    assert not workers.beat(conn, worker, None).sweep, "it rests"
    job = make_job(conn, 1)
    with connect(database_url) as other:
        assert workers.beat(other, worker, None).sweep
    assert sweep.acquire_lease(conn, "two", 60, 60)
    assert (sweeps("one"), sweeps("two")) == (None, True)
    assert not workers.beat(conn, worker, None).sweep, "two sweeps"
    conn.execute("UPDATE callboard.leases SET until = now() - interval '1 s'")
    assert sweeps("two") is None
    assert workers.beat(conn, worker, None).sweep, "two died"
    assert status(conn, job)["state"] == "pending"
