"""A job that stands still gives the reason: each reason, with real processes and a real RabbitMQ."""

import re
from collections.abc import Callable

import dramatiq
import pytest

import callboard
from callboard.sql import timings
from tests.faults.rig.scenario import ACTORS, Scenario, gated
from tests.support.vhosts import Broker


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the reason earlier than the product does."""
    monkeypatch.setattr(timings, "QUIET_AFTER_SECONDS", 1.0)


def client_half(number: int) -> None:
    """What the client knows of an actor that few workers have."""


def says(pattern: str) -> Callable[[dict[str, object]], bool]:
    """Whether a job's standstill has this reason."""
    return lambda status: re.fullmatch(pattern, str(status["stalled"])) is not None


def test_nobody_is_alive_or_has_the_actor_or_it_waits_for_a_retry(scenario: Scenario) -> None:
    job = scenario.submit("work", [{"number": 0}])
    scenario.wait_for(job, says("no worker is alive"))
    # One that takes messages from another queue only: it can't get to that actor's.
    scenario.start_worker(modules=(ACTORS, "tests.faults.rig.other_queue_actor"), arguments=("--queues", "elsewhere"))
    scenario.wait_for(job, says("no worker that is alive has the actor work"))
    late = callboard.submit("later", [{"number": 0}])
    scenario.wait_for(late, says(r"waiting for a retry at 20[-0-9]+T[:.0-9]+Z"))
    scenario.start_worker()
    scenario.assert_completed(job, total=1)
    scenario.assert_completed(late, total=1, retries=1)


def test_of_several_actors_one_is_missing(scenario: Scenario) -> None:
    """A child whose actor went with the worker that had it."""
    renamed = dramatiq.actor(actor_name="renamed", broker=scenario.broker)(client_half)
    with callboard.job("before") as before:
        renamed.send(number=0)
    ahead = scenario.start_worker(modules=(ACTORS, "tests.faults.rig.renamed_actor"))
    scenario.assert_completed(before, total=1)
    assert ahead.stop() == 0
    scenario.workers.remove(ahead)
    scenario.start_worker()
    with callboard.job("several") as job:
        scenario.broker.get_actor("work").send(0)
        renamed.send(number=1)
    missing = says("no worker that is alive has the actor renamed")
    scenario.wait_for(job, lambda status: status["succeeded"] == 1 and missing(status))
    scenario.start_worker(modules=(ACTORS, "tests.faults.rig.renamed_actor"))
    scenario.assert_completed(job, total=2)


def test_its_queue_is_gone_and_may_not_be_made_again(broker: Broker, scenario: Scenario) -> None:
    """Most items wait until it is gone, however long that takes."""
    url, gate = scenario.environment["AMQP_URL"], scenario.folder / "gate"
    scenario.start_worker(short_periods=5, env={"CALLBOARD_QUEUE_DEPTH": "100"})
    job = scenario.submit("work", gated(({"number": n} for n in range(600)), gate, 60))
    scenario.wait_at_work(job, 50, 60, threads=8)
    broker.allow_declaring(url, allowed=False)
    broker.delete_queue(url, "default")
    gate.touch()
    scenario.wait_for(job, says(r".*queue 'default'.*"))
    broker.allow_declaring(url, allowed=True)
    scenario.assert_completed(job, total=600)
