"""The consumer's connection is lost with work in flight: what is acknowledged afterwards is what ran, no more."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pika
import pytest
from dramatiq import Message

from callboard.commands.services import Node
from tests.faults.rig.points import HURRY
from tests.faults.rig.proxy import Proxy, proxy
from tests.faults.rig.scene import TIMEOUT, Scene, fate
from tests.support.workers import wait_until

#: Has the workers of `either` take Dramatiq's own broker.
STOCK = "CALLBOARD_TEST_STOCK"
#: Twelve messages, six of them fetched at a time; the fifth is in hand when the connection closes.
COUNT, PREFETCH, IN_HAND, NEXT, LOST = 12, 6, 4, 5, 8


def vhost_of(on: Scene) -> str:
    return urlsplit(on.environment["AMQP_URL"]).path[1:]


def close_connections(on: Scene) -> None:
    """RabbitMQ closes every connection to the virtual host."""
    on.node.ctl("close_all_connections", "--vhost", vhost_of(on), "a fault")


def unacknowledged(on: Scene) -> int:
    """Messages in the queue, ready or delivered; RabbitMQ's count of a moment ago."""
    lines = on.node.ctl("list_queues", "-p", vhost_of(on), "name", "messages").splitlines()
    return {name: int(count) for name, count in (line.split("\t") for line in lines[1:])}["default"]


def channel_of(on: Scene) -> str:
    """The channel that consumes the queue; empty while none does."""
    lines = on.node.ctl("list_consumers", "-p", vhost_of(on), "queue_name", "channel_pid").splitlines()
    return next(
        (channel for name, _, channel in (line.partition("\t") for line in lines) if name == "default"), ""
    )


def begun(on: Scene) -> dict[int, int]:
    """How often each number was begun."""
    return dict(on.ledger.runs(0))


@pytest.mark.parametrize("stock", [True, False], ids=["Dramatiq's own", "ours"])
def test_a_message_that_never_ran_is_not_acknowledged_for_another(stock: bool, on: Scene) -> None:
    """Dramatiq 2.2 acknowledges the number that a message had on the lost connection: another's on the new one."""
    gates = {IN_HAND: str(on.folder / "first"), NEXT: str(on.folder / "second")}
    modules = ("tests.faults.rig.either", "tests.faults.rig.points")
    env = {HURRY: "3", "dramatiq_restart_delay": "200"} | ({STOCK: "1"} if stock else {})
    worker = on.worker(threads=1, modules=modules, env={**env, "dramatiq_queue_prefetch": str(PREFETCH)})
    assert wait_until(lambda: channel_of(on) != "", TIMEOUT)
    with on.channel() as channel:
        for n in range(COUNT):
            body = Message("default", "note", (n, gates.get(n)), {}, {}).encode()
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))
    assert wait_until(lambda: IN_HAND in begun(on) and unacknowledged(on) == COUNT - IN_HAND, TIMEOUT)
    before = channel_of(on)
    close_connections(on)
    assert wait_until(lambda: channel_of(on) not in ("", before), TIMEOUT, pause=0.2)
    (on.folder / "first").touch()
    assert wait_until(lambda: NEXT in begun(on) and unacknowledged(on) == COUNT - NEXT, TIMEOUT), begun(on)
    worker.kill()
    assert set(begun(on)) == set(range(NEXT + 1))

    (on.folder / "second").touch()
    on.worker(modules=modules, env=env)
    assert wait_until(lambda: unacknowledged(on) == 0, TIMEOUT)
    assert set(range(COUNT)) - set(begun(on)) == ({LOST} if stock else set())
    if not stock:
        states = "SELECT item, state::text FROM callboard.items ORDER BY 1"
        assert wait_until(lambda: on.sql(states) == [(n, "succeeded") for n in range(COUNT)], TIMEOUT)
        on.prove_true()
    print(f"begun: {sorted(begun(on).items())}")


@pytest.fixture
def line(environment: dict[str, str], node: Node) -> Iterator[Proxy]:
    """The way to RabbitMQ, which can be cut."""
    url = urlsplit(environment["AMQP_URL"])
    with proxy(("127.0.0.1", url.port or 5672)) as made:
        at = url.netloc.replace(f":{url.port}", f":{made.port}")
        environment["AMQP_URL"] = url._replace(netloc=at).geturl()
        yield made


@pytest.mark.parametrize("how", ["closed", "cut"])
def test_what_was_fetched_before_does_not_run_twice(how: str, line: Proxy, on: Scene) -> None:
    """The copies in memory go, those in hand are joined by what comes again, and all is counted once."""
    count = 2_500
    worker = on.worker(env={"dramatiq_restart_delay": "200"})
    assert wait_until(on.consumed, TIMEOUT)
    items = ({"number": n, "fate": fate(n), "seconds": 0.01 if n % 30 else 0.5} for n in range(count))
    job = on.submit("work", items)
    with on.witness(job) as witness:
        for part in (200, 600):
            on.until(job, lambda status: status["succeeded"] >= part and on.ledger.open(job.id) > 0)
            if how == "cut":
                assert line.cut() >= 2
            else:
                close_connections(on)
            # More than was in hand: what was fetched before is gone, so that this came by another connection.
            reached = on.status(job)["succeeded"] + 100
            on.until(job, lambda status: status["succeeded"] >= reached)
        on.prove_mixed(job, count, witness=witness)
    assert on.starts == 1
    assert on.ledger.twice(job.id) == 0
    tries = {"fail": 3, "retry": 2}
    assert on.ledger.runs(job.id) == {n: tries.get(fate(n), 1) for n in range(count)}
    assert worker.stop() == 0
    assert on.depth() == 0
