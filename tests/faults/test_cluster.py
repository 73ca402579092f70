"""A cluster of three RabbitMQ nodes with quorum queues, of which one after the other is killed, with a job at work."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import callboard
from tests.faults.rig.scenario import Scenario, mixed, seconds_since
from tests.faults.test_rabbitmq import sent_again
from tests.support.cluster import Member, cluster
from tests.support.transports import transport_to

ITEMS = 20_000 if os.environ.get("CALLBOARD_TEST_LONG") else 1_500
#: The user may do everything in the virtual host.
ALLOW = (
    'rabbit_auth_backend_internal:set_permissions(<<"callboard">>, <<"callboard">>, <<".*">>, <<".*">>, <<".*">>,'
    ' <<"tests">>)'
)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Member]]:
    """The running cluster."""
    with cluster(tmp_path / "cluster") as members:
        yield members


@pytest.fixture
def vhost(nodes: list[Member]) -> str:
    """The addresses of all nodes; queues of their virtual host are quorum queues, without a word in the actors."""
    nodes[0].ctl("add_vhost", "callboard", "--default-queue-type", "quorum")
    nodes[0].evaluate(ALLOW)
    return ";".join(node.url_of("callboard") for node in nodes)


def assert_one_broker(nodes: list[Member]) -> None:
    """Each node tells a name of its own, and knows those of the others."""
    with ExitStack() as stack:
        found = [stack.enter_context(transport_to(node.url_of("callboard"))) for node in nodes]
        names = {str(transport.name()) for transport in found}
        assert len(names) == len(nodes)
        assert all(transport.gave_name(name) for transport in found for name in names)
        assert not found[0].gave_name("another, virtual host callboard")


def goes_on(scenario: Scenario, job: callboard.Job, node: Member, gate: Path) -> None:
    """A node is killed while items wait for the gate, and more items end."""
    before = scenario.status(job)["succeeded"]
    node.kill()
    gate.touch()
    began = time.monotonic()
    scenario.wait_for(job, lambda status: status["succeeded"] > before + ITEMS / 20)
    print(f"went on after {seconds_since(began):.1f} s")


def behind_gates(first: Path, second: Path) -> Iterator[dict[str, Any]]:
    """Items of which a tenth waits for nothing, the others of the first half for one file, and the rest for another."""
    for item in mixed(ITEMS):
        gate = second if item["number"] >= ITEMS / 2 else first
        yield {**item, "gate": str(gate) if item["number"] >= ITEMS / 10 else ""}


def test_one_node_after_the_other_is_killed(scenario: Scenario, nodes: list[Member], tmp_path: Path) -> None:
    """First one that no consumer is connected to, then the one of all consumers: work goes on by the other two. Most
    items wait for each kill, in the hands of the workers and in the queue. A quorum queue keeps what a consumer had
    that was cancelled until its node is back: the sweep finds these messages lost.
    """
    first, second = (tmp_path / name for name in ("first", "second"))
    for _ in range(2):
        scenario.start_worker()
    assert_one_broker(nodes)
    job = scenario.submit("work", behind_gates(first, second))
    with scenario.watch(job) as watcher:
        scenario.wait_at_work(job, ITEMS // 20, ITEMS // 10, threads=2 * 8)
        goes_on(scenario, job, nodes[2], first)
        # As operators do between two nodes: each queue has all of its replicas again.
        nodes[2].start().evaluate("true = rabbit_upgrade_preparation:await_online_quorum_plus_one(240000)")
        kinds = nodes[2].evaluate('rabbit_amqqueue:info_all(<<"callboard">>, [type])')
        assert kinds == str([["{type, quorum}"]] * 3).replace("'", "")
        goes_on(scenario, job, nodes[0], second)
        runs = scenario.assert_mixed_completed(job, ITEMS, watcher=watcher)
    print(f"{runs.total()} runs, {scenario.run_log.repeated(job.id)} of them twice, {sent_again(scenario)} sent again")
