"""The same message again: before the first of it runs, meanwhile, afterwards, on both processes. It counts once.

How often it runs is another matter. A message that says of itself that it may be a copy, as all that RabbitMQ or
Callboard sends again does, runs once. One that somebody else repeated says no such thing, and nothing is asked for it:
it may run as often as it is delivered, also beside itself: in two processes, or where two threads take it at once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pika
import pytest

import callboard
from tests.faults.rig.scenario import TIMEOUT, Scenario, fate
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

ITEMS, SLOW = 240, 30
#: Two runs of the same item at the same time, in one process or in two.
BESIDE = (
    "SELECT count(*) FILTER (WHERE a.pid = b.pid), count(*) FILTER (WHERE a.pid <> b.pid) FROM runs AS a JOIN runs AS b"
    " ON a.job = b.job AND a.item = b.item AND a.id < b.id AND b.began < a.ended AND a.began < b.ended"
    " WHERE a.job = %s"
)
TRIES = {"fail": 3, "retry": 2}


@pytest.fixture(autouse=True)
def deep(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a job lies in its queue, though nobody works."""
    monkeypatch.setenv("CALLBOARD_QUEUE_DEPTH", "1000")


def taken(scenario: Scenario, job: callboard.Job, count: int) -> list[bytes]:
    """The messages of a job that nobody works on, by item: out of the queue."""
    scenario.wait_for(job, lambda status: status["queued"] == count)
    found: dict[int, bytes] = {}
    with scenario.channel() as channel:
        while len(found) < count:
            method, _, body = channel.basic_get("default", auto_ack=True)
            assert method is not None
            found[json.loads(body)["options"]["callboard"]["item"]] = body
    return [found[n] for n in range(count)]


def suspected(body: bytes) -> bytes:
    """The message as Callboard sends it again."""
    message = json.loads(body)
    message["options"]["callboard"]["suspect"] = True
    return json.dumps(message).encode()


def put(scenario: Scenario, bodies: Iterable[bytes]) -> None:
    with scenario.channel() as channel:
        for body in bodies:
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))


def drained(broker: Broker, scenario: Scenario) -> bool:
    """Whether the queue holds nothing, delivered or not."""
    return not scenario.ready_messages() and not broker.queues(scenario.environment["AMQP_URL"])["default"]


def beside(scenario: Scenario, job: callboard.Job) -> tuple[int, int]:
    """Pairs of runs of an item at the same time: in one process, in two."""
    row = scenario.run_log.conn.execute(BESIDE, (job.id,)).fetchone()
    assert row is not None
    return row[0], row[1]


def processes(scenario: Scenario, job: callboard.Job) -> int:
    row = scenario.run_log.conn.execute("SELECT count(DISTINCT pid) FROM runs WHERE job = %s", (job.id,)).fetchone()
    return int(row[0]) if row else 0


def running(scenario: Scenario, job: callboard.Job) -> list[int]:
    """The items that are known to be in hand."""
    return [item for (item,) in scenario.sql("SELECT item FROM callboard.running WHERE job_id = %s ORDER BY 1", job.id)]


def counts(scenario: Scenario, job: callboard.Job) -> dict[str, Any]:
    status = scenario.status(job)
    return {name: status[name] for name in ("total", "succeeded", "failed", "skipped", "retries", "state")}


@pytest.mark.parametrize("marked", [True, False], ids=["that say so", "that do not"])
def test_copies_on_both_processes_before_during_and_after(marked: bool, broker: Broker, scenario: Scenario) -> None:
    gate = scenario.folder / "gate"
    items = (
        {"number": n, "fate": fate(n), "seconds": 0.01 if n % SLOW else 1.0, "gate": "" if n % SLOW else str(gate)}
        for n in range(ITEMS)
    )
    job = scenario.submit("work", items)
    bodies = taken(scenario, job, ITEMS)
    if marked:
        bodies = [suspected(body) for body in bodies]
    for _ in range(2):
        scenario.start_worker()
    delivered = Counter({n: 1 + n % 5 for n in range(ITEMS)})
    with scenario.watch(job) as watcher:
        put(scenario, (bodies[n] for n in delivered.elements()))
        scenario.wait_for(job, lambda _: len(running(scenario, job)) > 0)
        meanwhile = running(scenario, job)
        put(scenario, (bodies[n] for n in meanwhile for _ in range(4)))
        delivered.update(meanwhile * 4)
        # The slow ones are enough for all threads of one process, so the other one begins the rest.
        scenario.wait_for(job, lambda _: processes(scenario, job) == 2)
        gate.touch()
        runs = scenario.assert_mixed_completed(job, ITEMS, watcher=watcher)
        ended = counts(scenario, job)
        put(scenario, bodies * 2)
        delivered.update(list(range(ITEMS)) * 2)
        assert wait_until(lambda: drained(broker, scenario), TIMEOUT)
    assert counts(scenario, job) == ended
    assert watcher.wrong == []
    assert ended["retries"] == sum(TRIES.get(fate(n), 1) - 1 for n in range(ITEMS))
    assert processes(scenario, job) == 2
    here, elsewhere = beside(scenario, job)
    attempts = scenario.run_log.attempt_counts(job.id)
    assert dict(sorted(attempts)) == {n: TRIES.get(fate(n), 1) for n in range(ITEMS)}
    if marked:
        assert scenario.run_log.run_counts(job.id) == runs
        assert set(attempts.values()) == {1}
        assert (here, elsewhere) == (0, 0)
    else:
        assert all(attempts[n, 1] <= delivered[n] for n in range(ITEMS))
        assert all(count == 1 for (_, attempt), count in attempts.items() if attempt > 1)
        assert scenario.run_log.repeated(job.id) > 0
    print(
        f"{delivered.total()} deliveries of {ITEMS} messages, {scenario.run_log.run_counts(job.id).total()} runs,"
        f" {here} and {elsewhere} pairs beside each other, in one process and in two"
    )


def let_end(scenario: Scenario, gate: str, attempt: int) -> None:
    """When all copies came to the workers, have the attempts that wait for a gate end."""
    assert wait_until(lambda: scenario.ready_messages() == 0, TIMEOUT)
    Path(gate.format(attempt=attempt)).touch()


def test_late_copies_of_an_attempt_that_fails(broker: Broker, scenario: Scenario) -> None:
    """Begun beside it, beside the next attempt, and after that: one failure counts, and the success stays. The copies
    of one job say that they may be copies, those of the other do not.
    """
    count = 3
    jobs: dict[bool, callboard.Job] = {}
    bodies: dict[bool, list[bytes]] = {}
    late: dict[bool, list[bytes]] = {}
    gate = str(scenario.folder / "gate-{attempt}")
    for marked in (True, False):
        items = ({"number": n, "fate": "retry", "gate": gate} for n in range(count))
        jobs[marked] = scenario.submit("work", items)
        bodies[marked] = taken(scenario, jobs[marked], count)
        copies = [suspected(body) if marked else body for body in bodies[marked]]
        late[marked] = [body for body in copies for _ in range(2)]  # one for each worker
    for _ in range(2):
        scenario.start_worker()
    known = "SELECT item FROM callboard.running WHERE job_id = %s AND attempt = %s"
    alone = {(marked, n) for marked in jobs for n in range(count)}

    def all_beside(_: object) -> bool:
        """Each item gets its copies as soon as it has a row in `running`."""
        here = {(marked, item) for marked, job in jobs.items() for (item,) in scenario.sql(known, job.id, 1)} & alone
        put(scenario, (late[marked][2 * item + copy] for marked, item in here for copy in (0, 1)))
        alone.difference_update(here)
        return not alone

    with scenario.watch(jobs[True]) as one, scenario.watch(jobs[False]) as other:
        put(scenario, bodies[True] + bodies[False])
        scenario.wait_for(jobs[True], all_beside)
        let_end(scenario, gate, 1)
        for marked, job in jobs.items():
            scenario.wait_for(job, lambda _, job=job: bool(scenario.sql(known, job.id, 2)))  # type: ignore[misc]
            put(scenario, late[marked])
        let_end(scenario, gate, 2)
        ended = {}
        for job, watcher in zip(jobs.values(), (one, other), strict=True):
            scenario.assert_completed(job, total=count, retries=count, watcher=watcher)
            ended[job.id] = counts(scenario, job)
        put(scenario, late[True] + late[False])
        assert wait_until(lambda: drained(broker, scenario), TIMEOUT)
    for marked, job in jobs.items():
        assert counts(scenario, job) == ended[job.id]
        attempts = scenario.run_log.attempt_counts(job.id)
        assert {attempts[n, 2] for n in range(count)} == {1}
        if marked:
            assert {attempts[n, 1] for n in range(count)} == {1}
        else:
            assert all(1 <= attempts[n, 1] <= 7 for n in range(count))
            assert scenario.run_log.repeated(job.id) > 0
        assert scenario.sql("SELECT count(*) FROM callboard.attempts WHERE job_id = %s", job.id) == [(count,)]


def begun(scenario: Scenario, count: int) -> tuple[callboard.Job, Sequence[bytes]]:
    """A job of which half the messages are being worked on, and all of its messages."""
    job = scenario.submit("work", ({"number": n, "seconds": 0.02} for n in range(count)))
    bodies = taken(scenario, job, count)
    for _ in range(2):
        scenario.start_worker()
    put(scenario, bodies[: count // 2])
    scenario.wait_for(job, lambda status: status["succeeded"] == count // 2)
    return job, bodies


def test_copies_of_a_cancelled_jobs_messages_run_nowhere(broker: Broker, scenario: Scenario) -> None:
    """They run in no worker, also in none that starts later."""
    count = 200
    job, bodies = begun(scenario, count)
    job.cancel()
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    scenario.start_worker()
    scenario.all_heard(job)
    before, runs = scenario.status(job), scenario.run_log.run_counts(job.id)
    assert (before["succeeded"], before["cancelled"]) == (count // 2, count // 2)
    put(scenario, [body for body in bodies for _ in range(3)])
    assert wait_until(lambda: drained(broker, scenario), TIMEOUT)
    assert scenario.run_log.run_counts(job.id) == runs
    assert scenario.status(job)["cancelled"] == count // 2
    assert scenario.leftover_rows(job) == {"running": 0, "outbox": 0}


def test_copies_of_a_paused_jobs_messages_are_kept_once(broker: Broker, scenario: Scenario) -> None:
    count = 200
    job, bodies = begun(scenario, count)
    with scenario.watch(job) as watcher:
        job.pause()
        scenario.start_worker()
        scenario.all_heard(job)
        runs = scenario.run_log.run_counts(job.id)
        put(scenario, [body for body in bodies for _ in range(3)])
        assert wait_until(lambda: drained(broker, scenario), TIMEOUT)
        assert scenario.run_log.run_counts(job.id) == runs
        assert scenario.status(job)["pending"] == count // 2
        job.resume()
        again = scenario.assert_completed(job, total=count, retries=0, watcher=watcher)
    assert set(again.values()) == {1}
