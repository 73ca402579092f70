"""A worker is asked to stop, and ends soon. Outcomes that it could not record, since the database is away, come again;
items that it interrupted end as with Dramatiq, or run again.
"""

import signal

from dramatiq import Message

from callboard.commands.services import Server
from tests.faults.rig.scenario import ACTORS, POLL, Scenario, gated, mixed
from tests.support.timer import Timer
from tests.support.workers import Worker, wait_until

#: Seconds in which it ends, before Kubernetes' patience of 30 is over: eight in which it tries to write, five for the
#: pool, whose connections a pooler may hold up, and the time that Dramatiq takes.
SOON = 28.0


def stops(worker: Worker) -> None:
    """SIGTERM, and it ends in order."""
    timer = Timer()
    assert worker.stop() == 0
    took = timer.seconds
    print(f"ended after {took:.2f} s")
    assert took < SOON


def test_outcomes_that_wait_for_the_database(scenario: Scenario, breakable_postgres: Server) -> None:
    worker, gate = scenario.start_worker(), scenario.folder / "gate"
    job = scenario.submit("work", gated(mixed(600), gate, 300))
    scenario.wait_at_gate(job, 300, threads=8)
    breakable_postgres.stop()
    gate.touch()
    assert wait_until(lambda: "the database can't be written to" in worker.output, 300)
    stops(worker)
    assert "outcomes could not be written; their messages are delivered again" in worker.output
    breakable_postgres.start()
    worker.start()
    scenario.assert_mixed_completed(job, 600)
    assert scenario.run_log.repeated(job.id) > 0
    assert "had lost their messages" not in scenario.log()


def test_messages_that_wait_to_be_recorded_on_sight(scenario: Scenario, breakable_postgres: Server) -> None:
    """Without our stamp, as from a foreign producer: their worker threads wait for the journal."""
    worker = scenario.start_worker()
    assert wait_until(scenario.has_consumer, 300, pause=POLL)
    breakable_postgres.stop()
    with scenario.channel() as channel:
        for n in range(20):
            message: Message[None] = Message("default", "work", (n,), {}, {})
            channel.basic_publish("", "default", message.encode())
    assert wait_until(lambda: scenario.ready_messages() < 20, 300, pause=POLL)
    stops(worker)
    assert wait_until(lambda: scenario.ready_messages() == 20, 300, pause=POLL)
    breakable_postgres.start()
    worker.start()
    ended = "SELECT count(*) FROM callboard.items WHERE state = 'succeeded'"
    assert wait_until(lambda: scenario.sql(ended) == [(20,)], 300)


def test_outcomes_of_a_stock_broker_that_wait_for_the_database(scenario: Scenario, breakable_postgres: Server) -> None:
    worker = scenario.start_worker(modules=("tests.faults.rig.stock_broker",))
    gate = scenario.folder / "gate"
    job = scenario.submit("plain", gated(({"number": n} for n in range(600)), gate, 300))
    scenario.wait_at_gate(job, 300, threads=8)
    breakable_postgres.stop()
    gate.touch()
    assert wait_until(lambda: "the database can't be written to" in worker.output, 300)
    stops(worker)
    breakable_postgres.start()
    worker.start()
    runs = scenario.assert_completed(job, total=600)
    assert runs.total() > 600
    assert "had lost their messages" not in scenario.log()


def test_items_that_a_shutdown_interrupts(scenario: Scenario) -> None:
    """They have another attempt while they may, or fail with that for a reason; one may also end in its own way."""
    modules = (ACTORS, "tests.faults.rig.interrupted_actors")
    worker = scenario.start_worker(modules=modules, arguments=("--worker-shutdown-timeout", "600000"))
    ways = ["breaks off", "breaks off", "breaks off", "returns", "skips"]
    job = scenario.submit("interrupted", ways)
    last = scenario.submit("only_once", [[]] * 2)
    gate = scenario.folder / "gate"
    neighbour = scenario.submit("work", gated([{"number": 0}], gate, 0))
    with scenario.watch(job) as watcher:
        for one, count in ((job, len(ways)), (last, 2), (neighbour, 1)):
            scenario.wait_for(one, lambda status: status["running"] == count)
        behind = scenario.submit("work", ({"number": n} for n in range(40)))
        worker.process.ask_to_end()
        assert wait_until(lambda: "Stopping worker process..." in worker.output, 300)
        gate.touch()
        stops(worker)
        assert scenario.status(job)["retries"] == 3
        assert scenario.status(neighbour)["state"] == "completed"  # nobody interrupts who did not ask for it
        assert scenario.sql("SELECT count(*) FROM callboard.running") == [(0,)]
        worker.start()
        runs = scenario.assert_completed(job, total=len(ways), skipped=1, retries=3, watcher=watcher)
    assert runs == {0: 2, 1: 2, 2: 2, 3: 1, 4: 1}
    scenario.assert_completed(last, total=2, failed=2, retries=0)
    scenario.assert_completed(neighbour, total=1)
    scenario.assert_completed(behind, total=40, retries=0)
    told = "SELECT job_id, item, retried, kind::text, error_type, message FROM callboard.attempts ORDER BY 1, 2"
    shutdown = "dramatiq.middleware.shutdown.Shutdown"
    assert scenario.sql(told) == [
        *((job.id, n, True, "failed", shutdown, "") for n in range(3)),
        (job.id, 4, False, "skipped", "Skip", "asked to stop"),
        *((last.id, n, False, "failed", shutdown, "") for n in range(2)),
    ]
    for one in (job, last, neighbour, behind):
        assert scenario.run_log.repeated(one.id) == 0
        assert scenario.status(one)["crashes"] == 0
    assert scenario.ready_messages("default.XQ") == 2


def test_a_second_signal_kills_a_worker_that_runs_coroutines(scenario: Scenario) -> None:
    """As with Dramatiq's own workers, no thread outlives the main one and goes on where no signal reaches it."""
    worker = scenario.start_worker(modules=(ACTORS, "tests.faults.rig.interrupted_actors"))
    job = scenario.submit("waits", [[]])
    scenario.wait_for(job, lambda status: status["running"] == 1)
    worker.process.send(signal.SIGTERM)
    assert wait_until(lambda: "Stopping worker process..." in worker.output, 300)
    worker.process.send(signal.SIGTERM)
    assert wait_until(lambda: not worker.process.running(), 300)
