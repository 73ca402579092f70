"""One queue with slow and fast items, failures, skips and successes, unreadable messages, messages of other producers,
and messages that no worker can run. No channel closes, no dead letter is lost, and no item waits for the slow ones.
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
from tests.faults.rig.scenario import Scenario, fate, gated, mixed
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

FAST, SLOW, UNKNOWN, ROUNDS, DISTURBANCE = 400, 3, 30, 8, 5
#: Items that end last. With the slow ones they are fewer than threads, so that all others end.
LATE = 4
#: What others put into the queue, each round; how it ends, and whether it is on record.
FOREIGN = [("work", "succeed"), ("work", "fail"), ("work", "skip"), ("nobody", "none")]


def client_half() -> None:
    """What the client knows of an actor that no worker has."""


def foreign(actor: str, fate: str, number: int) -> Message[Any]:
    """As stock Dramatiq would send it."""
    return Message("default", actor, (), {"number": number, "fate": fate}, {"max_retries": 0})


def disturb(scenario: Scenario, number: int, count: int = DISTURBANCE) -> tuple[list[Message[Any]], list[bytes]]:
    """Put the messages of others into the queue, and some that are none; all of these."""
    sent = [foreign(*kind, number * count + n) for n in range(count) for kind in FOREIGN]
    unreadable = [b"round %d, number %d is no message" % (number, n) for n in range(count)]
    with scenario.channel() as channel:
        for body in (*unreadable, *(message.encode() for message in sent)):
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))
    return sent, unreadable


def dead_letters(scenario: Scenario) -> Iterator[bytes]:
    """What lies in the queue of the dead letters."""
    with scenario.channel() as channel:
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


def recorded(scenario: Scenario) -> Counter[str]:
    """The states of the items that others sent."""
    return Counter(
        state
        for (state,) in scenario.sql(
            "SELECT i.state::text FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id"
            " WHERE j.standing_on IS NOT NULL"
        )
    )


def test_all_kinds_in_one_queue(broker: Broker, scenario: Scenario) -> None:
    gate, url = scenario.folder / "gate", scenario.environment["AMQP_URL"]
    dramatiq.actor(actor_name="nobody", broker=scenario.broker)(client_half)
    worker = scenario.start_worker(env={"CALLBOARD_ACTOR_WAIT": "5s"})
    assert wait_until(lambda: len(broker.channels(url)) == 2, 300)
    before = broker.channels(url)
    sent: list[Message[Any]] = []
    unreadable: list[bytes] = []

    def drain(number: int) -> callboard.Job:
        """A job, with what others send in between."""
        late = scenario.folder / f"late-{number}"
        job = scenario.submit("work", gated(mixed(FAST), late, FAST - LATE))
        with scenario.watch(job) as watcher:
            for n in range(ROUNDS):
                scenario.wait_for(job, lambda status: status["succeeded"] >= n * FAST // 10)
                some, none = disturb(scenario, number * ROUNDS + n)
                sent.extend(some)
                unreadable.extend(none)
            assert scenario.status(job)["finished_at"] is None
            late.touch()
            scenario.assert_mixed_completed(job, FAST, watcher=watcher)
        assert scenario.run_log.repeated(job.id) == 0
        return job

    jobs = [drain(0)]
    slow = scenario.submit("work", [{"number": n, "gate": str(gate)} for n in range(SLOW)])
    unknown = scenario.submit("nobody", [{"number": n} for n in range(UNKNOWN)])
    scenario.wait_for(slow, lambda status: status["running"] == SLOW)
    jobs.append(drain(1))
    scenario.wait_for(unknown, lambda status: (status["state"], status["cancelled"]) == ("failed", UNKNOWN))
    each = 2 * ROUNDS * DISTURBANCE
    wanted = Counter(succeeded=each, failed=each, skipped=each)
    assert wait_until(lambda: recorded(scenario) == wanted, 300), recorded(scenario)
    assert scenario.status(slow)["running"] == SLOW  # all the others passed by them, on the same channel
    assert broker.channels(url) == before

    gate.touch()
    scenario.assert_completed(slow, total=SLOW)
    assert worker.stop() == 0
    assert scenario.ready_messages() == 0  # what was not acknowledged would be back
    given_up = [f"{job.id}-{n}" for job in jobs for n in range(FAST) if fate(n) == "fail"]
    rejected = [m.message_id for m in sent if m.actor_name == "nobody" or m.kwargs["fate"] == "fail"]
    expected = [*given_up, *rejected, *(body.decode() for body in unreadable)]
    found: list[bytes] = []

    def all_there() -> bool:
        found.extend(dead_letters(scenario))
        return len(found) >= len(expected)

    assert wait_until(all_there, 300), len(found)
    assert Counter(map(name, found)) == Counter(expected)
    log = broker.log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in log if urlsplit(url).path[1:] in line]
    assert any("accepted" in line or "user 'callboard' authenticated" in line for line in lines), lines
    assert not any("error" in line.casefold() for line in lines), lines
    assert "Restarting consumer" not in scenario.log()
    print(f"{len(given_up + rejected) + len(unreadable)} dead letters of {2 * FAST} items and others")
