"""The consumer's connection is lost with work in flight. Afterwards only messages that ran are acknowledged."""

from collections.abc import Iterator
from urllib.parse import urlsplit

import pika
import pytest
from dramatiq import Message

from tests.faults.rig.proxy import Proxy, proxy
from tests.faults.rig.scenario import POLL, TIMEOUT, Scenario, fate, gated
from tests.faults.test_rabbitmq import CUT, sent_again
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

#: Has the workers of `either` take Dramatiq's own broker: as it is, or tracked.
STOCK = "CALLBOARD_TEST_STOCK"
MODULES = ("tests.faults.rig.either_broker",)
#: Twelve messages, six of them fetched at a time; the fifth is in hand when the connection closes.
COUNT, PREFETCH, IN_HAND, NEXT, LOST = 12, 6, 4, 5, 8


def unsettled(broker: Broker, scenario: Scenario) -> int:
    """Messages in the queue, ready or delivered and not acknowledged."""
    return broker.queues(scenario.environment["AMQP_URL"])["default"]


def channel_of(broker: Broker, scenario: Scenario) -> str:
    """The channel that consumes the queue; empty while none does."""
    channels = broker.channels(scenario.environment["AMQP_URL"])
    return next((channel for queue, channel in channels if queue == "default"), "")


def begun(scenario: Scenario) -> dict[int, int]:
    """How often each number was begun."""
    return dict(scenario.run_log.run_counts(0))


@pytest.mark.parametrize(
    "stock", ["as it is", "tracked", ""], ids=["Dramatiq's own", "Dramatiq's own, tracked", "ours"]
)
def test_a_message_that_never_ran_is_not_acknowledged_for_another(
    stock: str, broker: Broker, scenario: Scenario
) -> None:
    """Dramatiq 2.2 acknowledges by the number on the lost connection, which is another message's on the new one."""
    gates = {IN_HAND: str(scenario.folder / "first"), NEXT: str(scenario.folder / "second")}
    env = {"dramatiq_restart_delay": "200"} | ({STOCK: stock} if stock else {})
    worker = scenario.start_worker(
        threads=1, modules=MODULES, short_periods=3, env={**env, "dramatiq_queue_prefetch": str(PREFETCH)}
    )
    assert wait_until(lambda: channel_of(broker, scenario) != "", TIMEOUT)
    with scenario.channel() as channel:
        for n in range(COUNT):
            body = Message("default", "note", (n, gates.get(n)), {}, {}).encode()
            channel.basic_publish("", "default", body, pika.BasicProperties(delivery_mode=2))
    assert wait_until(lambda: IN_HAND in begun(scenario) and unsettled(broker, scenario) == COUNT - IN_HAND, TIMEOUT)
    before = channel_of(broker, scenario)
    broker.close_connections(scenario.environment["AMQP_URL"])
    assert wait_until(lambda: channel_of(broker, scenario) not in ("", before), TIMEOUT)
    (scenario.folder / "first").touch()
    assert wait_until(lambda: NEXT in begun(scenario) and unsettled(broker, scenario) == COUNT - NEXT, TIMEOUT), begun(
        scenario
    )
    worker.kill()
    assert set(begun(scenario)) == set(range(NEXT + 1))

    (scenario.folder / "second").touch()
    scenario.start_worker(modules=MODULES, short_periods=3, env=env)
    assert wait_until(lambda: unsettled(broker, scenario) == 0, TIMEOUT)
    assert set(range(COUNT)) - set(begun(scenario)) == ({LOST} if stock == "as it is" else set())
    if stock != "as it is":
        states = "SELECT item, state::text FROM callboard.items ORDER BY 1"
        assert wait_until(lambda: scenario.sql(states) == [(n, "succeeded") for n in range(COUNT)], TIMEOUT)
        scenario.assert_counters_true()
    print(f"begun: {sorted(begun(scenario).items())}")


@pytest.fixture
def line(environment: dict[str, str]) -> Iterator[Proxy]:
    """The way to RabbitMQ, which can be cut."""
    url = urlsplit(environment["AMQP_URL"])
    with proxy(("127.0.0.1", url.port or 5672)) as made:
        at = url.netloc.replace(f":{url.port}", f":{made.port}")
        environment["AMQP_URL"] = url._replace(netloc=at).geturl()
        yield made


@pytest.mark.parametrize("how", ["closed", "cut"])
def test_what_was_fetched_before_does_not_run_twice(how: str, line: Proxy, broker: Broker, scenario: Scenario) -> None:
    """Prefetched copies are dropped, running ones are joined by their second delivery, and each item counts once."""
    count, start = 400, 200
    worker = scenario.start_worker(env={"dramatiq_restart_delay": "200"})
    assert wait_until(scenario.has_consumer, TIMEOUT, pause=POLL)
    jobs = []
    for part in range(2):
        gate, last = scenario.folder / f"gate-{part}", scenario.folder / f"last-{part}"
        items = [{"number": n, "fate": fate(n), "seconds": 0.01 if n % 30 else 0.5} for n in range(count)]
        # Half of the items are prefetched, in the queue, or in hand when the connection is lost, however slow this test
        # is; four of them run until others came by another connection.
        items = list(gated(items, gate, start))
        for item in items[start : start + 4]:
            item["gate"] = str(last)
        job = scenario.submit("work", items)
        with scenario.watch(job) as watcher:
            scenario.wait_at_gate(job, start, threads=8)
            if how == "cut":
                assert line.cut() >= 2
            else:
                broker.close_connections(scenario.environment["AMQP_URL"])
            gate.touch()
            # These were published after it, so they came by another connection.
            later = scenario.submit("work", [{"number": n} for n in range(20)])
            scenario.assert_completed(later, total=20)
            held = "SELECT count(*) FROM callboard.running WHERE job_id = %s AND item BETWEEN %s AND %s"
            scenario.wait_for(job, lambda _: scenario.sql(held, job.id, start, start + 3) == [(4,)])
            last.touch()
            scenario.assert_mixed_completed(job, count, watcher=watcher)
        jobs.append(job)
    assert scenario.starts == 1
    assert wait_until(lambda: CUT in scenario.log(), TIMEOUT, pause=POLL)  # the worker's master passes it on
    assert sent_again(scenario) == 0
    tries = {"fail": 3, "retry": 2}
    for job in jobs:
        assert scenario.run_log.repeated(job.id) == 0
        assert scenario.run_log.run_counts(job.id) == {n: tries.get(fate(n), 1) for n in range(count)}
    assert worker.stop() == 0
    assert scenario.ready_messages() == 0
