"""A RabbitMQ node is restarted, runs out of memory, and is gone, while a job runs."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

import callboard
from callboard.commands.services import wait_until
from tests.faults.rig.scenario import TIMEOUT, Scenario, fate, gated, mixed
from tests.faults.test_rabbitmq import CUT, sent_again
from tests.support.nodes import Node

#: Of the machine's memory; the node blocks publishers when it takes more.
MEMORY = "vm_memory_monitor:set_vm_memory_high_watermark({})"
BACK, PUBLISHING = "messages come from RabbitMQ at", "publishing goes on again, after"


@pytest.fixture
def alarmed(breakable_rabbitmq: Node) -> Iterator[Node]:
    """The node; it has memory again after the test."""
    yield breakable_rabbitmq
    breakable_rabbitmq.evaluate(MEMORY.format(0.4))


@pytest.fixture
def narrow(breakable_rabbitmq: Node) -> Iterator[None]:
    """The node takes messages of at most 100,000 bytes. RabbitMQ 3 asks its settings, 4 what it took from them once."""
    limit = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})"
    breakable_rabbitmq.evaluate(limit.format(100_000))
    yield
    breakable_rabbitmq.evaluate(limit.format(2**27))


@pytest.mark.usefixtures("narrow")
def test_messages_larger_than_rabbitmq_takes(scenario: Scenario) -> None:
    """Each fails alone, with its reason, whichever way it is published; all others are delivered once."""
    scenario.start_worker()
    large = {13, 14, 140}

    def items() -> Iterator[dict[str, Any]]:
        return ({"number": n, "fate": "x" * 200_000 if n in large else "succeed"} for n in range(150))

    jobs = [scenario.submit("work", items(), chunk=chunk) for chunk in (1, 20)]
    with callboard.job("sent") as sent:
        for item in items():
            scenario.broker.get_actor("work").send_with_options(kwargs=item, delay=100)
    for job in (*jobs, sent):
        scenario.wait_for(job, lambda status: status["finished_at"] is not None)
        status = scenario.status(job)
        assert (status["succeeded"], status["failed"]) == (147, 3), status
        failed = scenario.sql(
            "SELECT item, kind::text, error_type, message FROM callboard.attempts WHERE job_id = %s ORDER BY item",
            job.id,
        )
        assert [item for item, *_ in failed] == sorted(large)
        for _, kind, error_type, message in failed:
            assert (kind, error_type) == ("failed", "Unpublishable")
            assert re.fullmatch(r"the message has 200,\d+ bytes, and RabbitMQ takes 100,000 at most", message)
        assert scenario.leftover_rows(job) == {"running": 0, "outbox": 0}
        assert scenario.run_log.repeated(job.id) == 0


def back(scenario: Scenario, what: str, times: int) -> bool:
    """Whether each worker has said so often that it is."""
    return all(worker.output.count(what) >= times for worker in scenario.workers)


def test_restarted_in_mid_job(scenario: Scenario, breakable_rabbitmq: Node) -> None:
    """Once in order and once by SIGKILL; all confirmed messages are there again. Attempts that end while the node is
    gone are recorded; their retries wait in the database, and the job gives the reason.
    """
    for _ in range(2):
        scenario.start_worker()
    gates = [scenario.folder / name for name in ("stopped", "killed")]
    items = gated(mixed(600), gates[0], 250)
    more = gated(({"number": n, "fate": "retry"} for n in range(600, 900)), gates[1], 600)
    job = scenario.submit("work", chain(items, more))
    overdue = "SELECT count(*) FROM callboard.outbox WHERE job_id = %s AND due_at < now() - interval '3 s'"
    refused = re.compile(r"RabbitMQ at 127\.0\.0\.1:\d+: .*refused")
    with scenario.watch(job) as watcher:
        for times, gate, end in (1, gates[0], breakable_rabbitmq.stop), (2, gates[1], breakable_rabbitmq.kill):
            if gate == gates[0]:
                scenario.wait_at_work(job, 180, 250, threads=2 * 8)
            else:  # all that is in hand has a retry to come, which waits while the node is gone
                scenario.wait_at_gate(job, 600, threads=2 * 8)
            before, cuts = breakable_rabbitmq.pid, {worker: worker.output.count(CUT) for worker in scenario.workers}
            end()
            gate.touch()
            # A worker says that messages come again if it has said that they do not, which it says every five seconds.
            assert wait_until(lambda: all(worker.output.count(CUT) > said for worker, said in cuts.items()), TIMEOUT)
            if gate == gates[1]:
                scenario.wait_for(job, lambda _: scenario.sql(overdue, job.id)[0][0] > 0)
                scenario.wait_for(job, lambda status: refused.match(status["stalled"] or "") is not None)
            breakable_rabbitmq.start()
            assert breakable_rabbitmq.pid != before
            assert wait_until(lambda: back(scenario, BACK, times), TIMEOUT)
        fates = Counter(fate(n) for n in range(600))
        retries = 2 * fates["fail"] + fates["retry"] + 300
        runs = scenario.assert_completed(
            job, total=900, failed=fates["fail"], skipped=fates["skip"], retries=retries, watcher=watcher
        )
    assert min(runs[item] for item in range(600, 900)) == 2
    assert sent_again(scenario) == 0
    assert wait_until(lambda: back(scenario, PUBLISHING, 1), TIMEOUT)
    print(f"{runs.total()} runs, {scenario.run_log.repeated(job.id)} of them twice")


def test_publishers_blocked_by_a_memory_alarm(scenario: Scenario, alarmed: Node) -> None:
    scenario.start_worker()
    gate = scenario.folder / "gate"
    job = scenario.submit("work", gated(mixed(500, 0.02), gate, 250))
    with scenario.watch(job) as watcher:
        scenario.wait_at_work(job, 150, 250, threads=8)
        alarmed.evaluate(MEMORY.format("0.00001"))
        assert wait_until(lambda: int(alarmed.evaluate("length(rabbit_alarm:get_alarms())")) > 0, TIMEOUT)
        assert scenario.status(job)["finished_at"] is None
        gate.touch()
        blocked = scenario.submit("work", mixed(200))
        scenario.wait_for(blocked, lambda status: "blocks publishers" in (status["stalled"] or ""))
        status = scenario.status(blocked)
        assert re.fullmatch(r"RabbitMQ at 127\.0\.0\.1:\d+ blocks publishers: low on memory", status["stalled"]), (
            status["stalled"]
        )
        assert status["succeeded"] == 0
        alarmed.evaluate(MEMORY.format(0.4))
        scenario.assert_mixed_completed(job, 500, watcher=watcher)
        scenario.assert_mixed_completed(blocked, 200)
    assert sent_again(scenario) == 0
