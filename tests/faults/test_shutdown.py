"""A worker is asked to stop while the database is away: it ends soon, and what it could not record comes again."""

import time

from dramatiq import Message

from tests.faults.scene import Scene, mixed, seconds_since
from tests.helpers import Worker, wait_until

#: Seconds in which it ends.
SOON = 15.0


def stops(worker: Worker) -> None:
    """SIGTERM, and it ends in order."""
    asked = time.monotonic()
    assert worker.stop() == 0
    took = seconds_since(asked)
    print(f"ended after {took:.2f} s")
    assert took < SOON


def test_outcomes_that_wait_for_the_database(on: Scene) -> None:
    worker = on.worker()
    job = on.submit("work", mixed(1000, 0.02))
    on.until(job, lambda status: status["succeeded"] > 200)
    on.server.stop()
    assert wait_until(lambda: "the database can't be written to" in worker.output, 30)
    stops(worker)
    assert "outcomes could not be written; their messages come again" in worker.output
    on.server.start()
    worker.start()
    on.prove_mixed(job, 1000)
    assert on.ledger.runs(job.id).total() > 1000
    assert "had lost their messages" not in on.said()


def test_messages_that_wait_to_be_recorded_on_sight(on: Scene) -> None:
    """Without our stamp, as from a foreign producer: their worker threads wait for the journal."""
    worker = on.worker()
    on.server.stop()
    with on.channel() as channel:
        for n in range(20):
            message: Message[None] = Message("default", "work", (n,), {}, {})
            channel.basic_publish("", "default", message.encode())
    assert wait_until(lambda: on.depth() < 20, 30)
    stops(worker)
    assert on.depth() == 20
    on.server.start()
    worker.start()
    ended = "SELECT count(*) FROM callboard.items WHERE state = 'succeeded'"
    assert wait_until(lambda: on.sql(ended) == [(20,)], 30)


def test_a_broker_that_knows_no_deferred_acknowledgements(on: Scene) -> None:
    """Its threads wait for the commit; rather than acknowledge without it they end."""
    worker = on.worker(modules=("tests.faults.stock",))
    job = on.submit("plain", [[n] for n in range(1000)])
    on.until(job, lambda status: status["succeeded"] > 200)
    on.server.stop()
    assert wait_until(lambda: "the database can't be written to" in worker.output, 30)
    stops(worker)
    on.server.start()
    worker.start()
    runs = on.prove(job, total=1000)
    assert runs.total() > 1000
    assert "had lost their messages" not in on.said()
