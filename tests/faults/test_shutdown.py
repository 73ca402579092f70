"""A worker is asked to stop: it ends soon. What it could not record, for the database is away, comes again; what it
interrupted ends as Dramatiq says, or runs again.
"""

import time

from dramatiq import Message

from tests.faults.rig.scene import ACTORS, Scene, mixed, seconds_since
from tests.support.workers import Worker, wait_until

#: Seconds in which it ends, well before Kubernetes' patience of 30 is over: eight in which it tries to write, five for
#: the pool, whose connections a pooler may hold up, and the time that Dramatiq takes.
SOON = 20.0


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
    assert wait_until(lambda: "the database can't be written to" in worker.output, 60)
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
    assert wait_until(on.consumed, 60)
    on.server.stop()
    with on.channel() as channel:
        for n in range(20):
            message: Message[None] = Message("default", "work", (n,), {}, {})
            channel.basic_publish("", "default", message.encode())
    assert wait_until(lambda: on.depth() < 20, 60)
    stops(worker)
    assert wait_until(lambda: on.depth() == 20, 60)
    on.server.start()
    worker.start()
    ended = "SELECT count(*) FROM callboard.items WHERE state = 'succeeded'"
    assert wait_until(lambda: on.sql(ended) == [(20,)], 60)


def test_a_broker_that_knows_no_deferred_acknowledgements(on: Scene) -> None:
    """Its threads wait for the commit; rather than acknowledge without it they end."""
    worker = on.worker(modules=("tests.faults.rig.stock",))
    job = on.submit("plain", [[n] for n in range(1000)])
    on.until(job, lambda status: status["succeeded"] > 200)
    on.server.stop()
    assert wait_until(lambda: "the database can't be written to" in worker.output, 60)
    stops(worker)
    on.server.start()
    worker.start()
    runs = on.prove(job, total=1000)
    assert runs.total() > 1000
    assert "had lost their messages" not in on.said()


def test_items_that_a_shutdown_interrupts(on: Scene) -> None:
    """They have another attempt while they may, or fail with that for a reason; one may also end in its own way."""
    modules = (ACTORS, "tests.faults.rig.interrupted")
    worker = on.worker(modules=modules, arguments=("--worker-shutdown-timeout", "600000"))
    ways = ["breaks off", "breaks off", "breaks off", "returns", "skips"]
    job = on.submit("interrupted", ways)
    last = on.submit("only_once", [[]] * 2)
    neighbour = on.submit("work", [{"number": 0, "seconds": 4}])
    with on.witness(job) as witness:
        for one, count in ((job, len(ways)), (last, 2), (neighbour, 1)):
            on.until(one, lambda status: status["running"] == count)
        behind = on.submit("work", ({"number": n} for n in range(40)))
        stops(worker)
        assert on.status(job)["retries"] == 3
        assert on.status(neighbour)["state"] == "completed"  # nobody interrupts who did not ask for it
        assert on.sql("SELECT count(*) FROM callboard.running") == [(0,)]
        worker.start()
        runs = on.prove(job, total=len(ways), skipped=1, retries=3, witness=witness)
    assert runs == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1}
    on.prove(last, total=2, failed=2, retries=0)
    on.prove(neighbour, total=1)
    on.prove(behind, total=40, retries=0)
    told = (
        "SELECT job_id, item, retried, kind::text, error_type, message FROM callboard.attempts ORDER BY 1, 2"
    )
    shutdown = "dramatiq.middleware.shutdown.Shutdown"
    assert on.sql(told) == [
        *((job.id, n, True, "failed", shutdown, "") for n in range(3)),
        (job.id, 4, False, "skipped", "Skip", "asked to stop"),
        *((last.id, n, False, "failed", shutdown, "") for n in range(2)),
    ]
    for one in (job, last, neighbour, behind):
        assert on.ledger.twice(one.id) == 0
        assert on.status(one)["crashes"] == 0
    assert on.depth("default.XQ") == 2
