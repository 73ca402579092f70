"""Everything in one queue: slow items among fast ones, failures and skips among successes, what can't be read, what
others sent, what nobody can run. No channel is closed by us, no dead letter is lost, nobody waits for the slow ones.
"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import dramatiq
import pika
from dramatiq import Message

import callboard
from tests.faults.rig.scene import ACTORS, Scene, fate, mixed
from tests.support.workers import wait_until

FAST, SLOW, UNKNOWN, ROUNDS, DISTURBANCE = 2_000, 3, 30, 8, 5
#: What others put into the queue, each round; how it ends, and whether it is on record.
FOREIGN = [("work", "succeed"), ("work", "fail"), ("work", "skip"), ("nobody", "none")]


def client_half() -> None:
    """What the client knows of an actor that no worker has."""


def consumers(on: Scene) -> set[tuple[str, str]]:
    """(queue, channel) of all who consume."""
    vhost = urlsplit(on.environment["AMQP_URL"]).path[1:]
    lines = on.node.ctl("list_consumers", "-p", vhost, "queue_name", "channel_pid").splitlines()
    found = {tuple(line.split("\t")) for line in lines}
    return {(queue, channel) for queue, channel in found if channel.startswith("<")}


def foreign(actor: str, fate: str, number: int) -> Message[Any]:
    """As stock Dramatiq would send it."""
    return Message("default", actor, (), {"number": number, "fate": fate}, {"max_retries": 0})


def disturb(on: Scene, number: int, count: int = DISTURBANCE) -> tuple[list[Message[Any]], list[bytes]]:
    """Put the messages of others into the queue, and some that are none; all of these."""
    sent = [foreign(*kind, number * count + n) for n in range(count) for kind in FOREIGN]
    unreadable = [b"round %d, number %d is no message" % (number, n) for n in range(count)]
    with on.channel() as channel:
        for body in (*unreadable, *(message.encode() for message in sent)):
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))
    return sent, unreadable


def dead_letters(on: Scene) -> Iterator[bytes]:
    """What lies in the queue of the dead letters."""
    with on.channel() as channel:
        while True:
            method, _, body = channel.basic_get("default.XQ", auto_ack=True)
            if method is None:
                return
            yield body


def name(body: bytes) -> str:
    """A message's id, or what is no message as it is."""
    try:
        return str(json.loads(body)["message_id"])
    except ValueError:
        return body.decode()


def recorded(on: Scene) -> Counter[str]:
    """The states of the items that others sent."""
    return Counter(
        state
        for (state,) in on.sql(
            "SELECT i.state::text FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id"
            " WHERE j.standing_on IS NOT NULL"
        )
    )


def test_all_kinds_in_one_queue(on: Scene) -> None:
    gate = on.folder / "gate"
    dramatiq.actor(actor_name="nobody", broker=on.broker)(client_half)
    worker = on.worker(modules=(ACTORS, "tests.faults.rig.gates"))
    logged = on.node.log.stat().st_size
    assert wait_until(lambda: len(consumers(on)) == 2, 60)
    before = consumers(on)
    sent: list[Message[Any]] = []
    unreadable: list[bytes] = []

    def drain(number: int) -> callboard.Job:
        """A job, with what others send in between."""
        job = on.submit("work", mixed(FAST))
        with on.witness(job) as witness:
            for n in range(ROUNDS):
                on.until(job, lambda status: status["succeeded"] >= n * FAST // 10)
                some, none = disturb(on, number * ROUNDS + n)
                sent.extend(some)
                unreadable.extend(none)
            on.prove_mixed(job, FAST, witness=witness)
        assert on.ledger.twice(job.id) == 0
        return job

    jobs = [drain(0)]
    slow = on.submit("gated", [{"number": n, "gate": str(gate)} for n in range(SLOW)])
    unknown = on.submit("nobody", [{"number": n} for n in range(UNKNOWN)])
    on.until(slow, lambda status: status["running"] == SLOW)
    jobs.append(drain(1))
    on.until(unknown, lambda status: status["failed"] == UNKNOWN)
    each = 2 * ROUNDS * DISTURBANCE
    wanted = Counter(succeeded=each, failed=each, skipped=each)
    assert wait_until(lambda: recorded(on) == wanted, 60), recorded(on)
    assert on.status(slow)["running"] == SLOW  # all the others passed by them, on the same channel
    assert consumers(on) == before

    gate.touch()
    on.prove(slow, total=SLOW)
    assert worker.stop() == 0
    assert on.depth() == 0  # what was not acknowledged would be back
    given_up = [f"{job.id}-{n}" for job in jobs for n in range(FAST) if fate(n) == "fail"]
    nowhere = [f"{unknown.id}-{n}" for n in range(UNKNOWN)]
    rejected = [m.message_id for m in sent if m.actor_name == "nobody" or m.kwargs["fate"] == "fail"]
    expected = [*given_up, *nowhere, *rejected, *(body.decode() for body in unreadable)]
    found: list[bytes] = []

    def all_there() -> bool:
        found.extend(dead_letters(on))
        return len(found) >= len(expected)

    assert wait_until(all_there, 60), len(found)
    assert Counter(map(name, found)) == Counter(expected)
    log = on.node.log.read_text(encoding="utf-8", errors="replace")[logged:]
    assert "connection" in log
    assert "PRECONDITION_FAILED" not in log
    assert "Restarting consumer" not in on.said()
    print(
        f"{len(given_up + nowhere + rejected) + len(unreadable)} dead letters of {2 * FAST} items and others"
    )
