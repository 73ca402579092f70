"""A job that can't move says why; the reason of each standstill, with real processes and a real RabbitMQ."""

import re
from collections.abc import Callable

import dramatiq
import pytest

import callboard
from callboard.sql.reads import job_view
from tests.faults.rig.scene import ACTORS, Scene


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for the reason earlier than the product does."""
    monkeypatch.setattr(job_view, "QUIET_AFTER", 1.0)


def client_half(number: int) -> None:
    """What the client knows of an actor that few workers have."""


def says(pattern: str) -> Callable[[dict[str, object]], bool]:
    """Whether a job's standstill has this reason."""
    return lambda status: re.fullmatch(pattern, str(status["stalled"])) is not None


def test_nobody_is_alive_or_has_the_actor_or_it_waits_for_a_retry(on: Scene) -> None:
    job = on.submit("work", [{"number": 0}])
    on.until(job, says("no worker is alive"))
    # One that takes messages from another queue only: it can't get to that actor's.
    on.worker(modules=(ACTORS, "tests.faults.rig.strangers"), arguments=("--queues", "elsewhere"))
    on.until(job, says("no worker that is alive has the actor work"))
    late = callboard.submit("later", [{"number": 0}])
    on.until(late, says(r"waiting for a retry at 20[-0-9]+T[:.0-9]+Z"))
    on.worker()
    on.prove(job, total=1)
    on.prove(late, total=1, retries=1)


def test_of_several_actors_one_is_missing(on: Scene) -> None:
    """A child whose actor went with the worker that had it."""
    renamed = dramatiq.actor(actor_name="renamed", broker=on.broker)(client_half)
    with callboard.job("before") as before:
        renamed.send(number=0)
    ahead = on.worker(modules=(ACTORS, "tests.faults.rig.renamed"))
    on.prove(before, total=1)
    assert ahead.stop() == 0
    on.workers.remove(ahead)
    on.worker()
    with callboard.job("several") as job:
        on.broker.get_actor("work").send(0)
        renamed.send(number=1)
    on.until(job, says("no worker that is alive has the actor renamed"))
    assert on.status(job)["succeeded"] == 1
    on.worker(modules=(ACTORS, "tests.faults.rig.renamed"))
    on.prove(job, total=2)


def test_its_queue_is_gone_and_may_not_be_made_again(on: Scene) -> None:
    name = on.environment["AMQP_URL"].rpartition("/")[2]
    on.worker()
    job = on.submit("work", ({"number": n, "seconds": 0.05} for n in range(2_500)))
    on.until(job, lambda status: status["succeeded"] > 50)
    on.node.ctl("set_permissions", "-p", name, "callboard", "^$", ".*", ".*")
    on.node.ctl("delete_queue", "default", "-p", name)
    on.until(job, says(r".*queue 'default'.*"))
    on.node.ctl("set_permissions", "-p", name, "callboard", ".*", ".*", ".*")
    on.prove(job, total=2_500)
