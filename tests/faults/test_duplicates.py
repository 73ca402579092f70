"""The same message again: before the first of it runs, meanwhile, afterwards, on both processes. It counts once.

How often it runs is another matter. A message that says of itself that it may be a copy, as all that RabbitMQ or
Callboard sends again does, runs once. One that somebody else repeated says no such thing, and nothing is asked for it:
it may run as often as it is delivered, also beside itself: in two processes, or where two threads take it at once.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest

import callboard
from tests.faults.rig.scene import TIMEOUT, Scene, fate
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


def taken(on: Scene, job: callboard.Job, count: int) -> list[bytes]:
    """The messages of a job that nobody works on, by item: out of the queue."""
    on.until(job, lambda status: status["queued"] == count)
    found: dict[int, bytes] = {}
    with on.channel() as channel:
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


def put(on: Scene, bodies: Iterable[bytes]) -> None:
    with on.channel() as channel:
        for body in bodies:
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))


def drained(on: Scene) -> bool:
    """Whether the queue holds nothing, delivered or not."""
    vhost = urlsplit(on.environment["AMQP_URL"]).path[1:]
    lines = on.node.ctl("list_queues", "-p", vhost, "name", "messages").splitlines()[1:]
    return ["default", "0"] in [line.split("\t") for line in lines]


def beside(on: Scene, job: callboard.Job) -> tuple[int, int]:
    """Pairs of runs of an item at the same time: in one process, in two."""
    row = on.ledger.conn.execute(BESIDE, (job.id,)).fetchone()
    assert row is not None
    return row[0], row[1]


def processes(on: Scene, job: callboard.Job) -> int:
    row = on.ledger.conn.execute("SELECT count(DISTINCT pid) FROM runs WHERE job = %s", (job.id,)).fetchone()
    return int(row[0]) if row else 0


def running(on: Scene, job: callboard.Job) -> list[int]:
    """The items that are known to be in hand."""
    return [
        item for (item,) in on.sql("SELECT item FROM callboard.running WHERE job_id = %s ORDER BY 1", job.id)
    ]


def counts(on: Scene, job: callboard.Job) -> dict[str, Any]:
    status = on.status(job)
    return {name: status[name] for name in ("total", "succeeded", "failed", "skipped", "retries", "state")}


@pytest.mark.parametrize("marked", [True, False], ids=["that say so", "that do not"])
def test_copies_on_both_processes_before_during_and_after(marked: bool, on: Scene) -> None:
    items = ({"number": n, "fate": fate(n), "seconds": 0.01 if n % SLOW else 1.5} for n in range(ITEMS))
    job = on.submit("work", items)
    bodies = taken(on, job, ITEMS)
    if marked:
        bodies = [suspected(body) for body in bodies]
    for _ in range(2):
        on.worker()
    delivered = Counter({n: 1 + n % 5 for n in range(ITEMS)})
    with on.witness(job) as witness:
        put(on, (bodies[n] for n in delivered.elements()))
        on.until(job, lambda _: len(running(on, job)) > 0)
        meanwhile = running(on, job)
        put(on, (bodies[n] for n in meanwhile for _ in range(4)))
        delivered.update(meanwhile * 4)
        runs = on.prove_mixed(job, ITEMS, witness=witness)
        ended = counts(on, job)
        put(on, bodies * 2)
        delivered.update(list(range(ITEMS)) * 2)
        assert wait_until(lambda: drained(on), TIMEOUT, pause=0.2)
    assert counts(on, job) == ended
    assert witness.wrong == []
    assert ended["retries"] == sum(TRIES.get(fate(n), 1) - 1 for n in range(ITEMS))
    assert processes(on, job) == 2
    here, elsewhere = beside(on, job)
    attempts = on.ledger.attempts(job.id)
    assert dict(sorted(attempts)) == {n: TRIES.get(fate(n), 1) for n in range(ITEMS)}
    if marked:
        assert on.ledger.runs(job.id) == runs
        assert set(attempts.values()) == {1}
        assert (here, elsewhere) == (0, 0)
    else:
        assert all(attempts[n, 1] <= delivered[n] for n in range(ITEMS))
        assert all(count == 1 for (_, attempt), count in attempts.items() if attempt > 1)
        assert on.ledger.twice(job.id) > 0
    print(
        f"{delivered.total()} deliveries of {ITEMS} messages, {on.ledger.runs(job.id).total()} runs,"
        f" {here} and {elsewhere} pairs beside each other, in one process and in two"
    )


@pytest.mark.parametrize("marked", [True, False], ids=["that say so", "that do not"])
def test_late_copies_of_an_attempt_that_fails(marked: bool, on: Scene) -> None:
    """Begun beside it, beside the next attempt, and after that: one failure counts, and the success stays."""
    count = 6
    job = on.submit("work", ({"number": n, "fate": "retry", "seconds": 1.0} for n in range(count)))
    bodies = taken(on, job, count)
    late = [suspected(body) if marked else body for body in bodies for _ in range(2)]  # one for each worker
    for _ in range(2):
        on.worker()
    known = "SELECT item FROM callboard.running WHERE job_id = %s AND attempt = %s"
    alone = set(range(count))

    def all_beside(_: object) -> bool:
        """Each gets its copies as soon as it is known to be in hand."""
        here = {item for (item,) in on.sql(known, job.id, 1)} & alone
        put(on, (late[2 * item + copy] for item in here for copy in (0, 1)))
        alone.difference_update(here)
        return not alone

    with on.witness(job) as witness:
        put(on, bodies)
        on.until(job, all_beside)
        on.until(job, lambda _: bool(on.sql(known, job.id, 2)))
        put(on, late)
        on.prove(job, total=count, retries=count, witness=witness)
        ended = counts(on, job)
        put(on, late)
        assert wait_until(lambda: drained(on), TIMEOUT, pause=0.2)
    assert counts(on, job) == ended
    attempts = on.ledger.attempts(job.id)
    assert {attempts[n, 2] for n in range(count)} == {1}
    if marked:
        assert {attempts[n, 1] for n in range(count)} == {1}
    else:
        assert all(1 <= attempts[n, 1] <= 7 for n in range(count))
        assert on.ledger.twice(job.id) > 0
    assert on.sql("SELECT count(*) FROM callboard.attempts WHERE job_id = %s", job.id) == [(count,)]


def begun(on: Scene, count: int) -> tuple[callboard.Job, Sequence[bytes]]:
    """A job of which half the messages are being worked on, and all of its messages."""
    job = on.submit("work", ({"number": n, "seconds": 0.02} for n in range(count)))
    bodies = taken(on, job, count)
    for _ in range(2):
        on.worker()
    put(on, bodies[: count // 2])
    on.until(job, lambda status: status["succeeded"] == count // 2)
    return job, bodies


def heard(on: Scene, job: callboard.Job) -> bool:
    """Whether each worker has beaten since the job was told something, and so asked what it was told before."""
    query = (
        "SELECT count(*) = 3 AND bool_and(w.beat_at > j.told_at + interval '2.5 s')"
        " FROM callboard.workers AS w, callboard.jobs AS j WHERE j.id = %s"
    )
    return bool(on.sql(query, job.id)[0][0])


def test_copies_of_a_cancelled_jobs_messages_run_nowhere(on: Scene) -> None:
    """Nor in a worker that starts later."""
    count = 200
    job, bodies = begun(on, count)
    job.cancel()
    on.until(job, lambda status: status["state"] == "cancelled")
    on.worker()
    before, runs = on.status(job), on.ledger.runs(job.id)
    assert (before["succeeded"], before["cancelled"]) == (count // 2, count // 2)
    put(on, [body for body in bodies for _ in range(3)])
    assert wait_until(lambda: drained(on), TIMEOUT, pause=0.2)
    assert on.ledger.runs(job.id) == runs
    assert on.status(job)["cancelled"] == count // 2
    assert on.left_over(job) == {"running": 0, "outbox": 0}


def test_copies_of_a_paused_jobs_messages_are_kept_once(on: Scene) -> None:
    count = 200
    job, bodies = begun(on, count)
    with on.witness(job) as witness:
        job.pause()
        on.worker()
        assert wait_until(lambda: heard(on, job), TIMEOUT)
        runs = on.ledger.runs(job.id)
        put(on, [body for body in bodies for _ in range(3)])
        assert wait_until(lambda: drained(on), TIMEOUT, pause=0.2)
        assert on.ledger.runs(job.id) == runs
        assert on.status(job)["pending"] == count // 2
        job.resume()
        again = on.prove(job, total=count, retries=0, witness=witness)
    assert set(again.values()) == {1}
