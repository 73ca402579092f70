"""Audit: stages of one job, which a kill or a cancel breaks off and which go on; the event loop is never blocked."""

import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

import callboard
from callboard.commands.local import remote_world
from callboard.commands.local.remote_world import Answer, World
from tests.pipelines import loop_lag
from tests.pipelines.rig import TIMEOUT, Rig, make_rig
from tests.support.services import SharedPostgres
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

STAGES = ["generate_queries", "ask_provider", "analyse_answer", "score_providers", "save_insight"]
ASKED = 45 * 3


@pytest.fixture(scope="module")
def rig(shared_postgres: SharedPostgres, broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("rig")
    lag = {loop_lag.FILE: str(folder / "lag")}
    with make_rig(shared_postgres, broker, folder, modules=(loop_lag.MODULE,), more=lag) as made:
        made.make_tables("audit")
        yield made


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, only so many questions are answered that others are open, however long the test takes."""
    made, numbers, ask = threading.Event(), count(), remote_world.SERVICES["ask"]

    def held(world: World, path: str, sent: Any) -> Answer:
        if next(numbers) >= ASKED // 2:
            made.wait(TIMEOUT)
        return ask(world, path, sent)

    monkeypatch.setitem(remote_world.SERVICES, "ask", held)
    yield made
    made.set()


def answered(job: callboard.Job, number: int) -> bool:
    """Wait until so many questions are answered."""
    return wait_until(lambda: job.status()["stages"][1]["succeeded"] >= number, TIMEOUT, pause=0.01)


def test_an_audit_whose_worker_is_killed_goes_on(rig: Rig, go_on: threading.Event) -> None:
    """While the job's row is locked for three seconds, nothing of it can be written, and the event loop goes on."""
    rig.world.seconds = 0.3
    (job,) = rig.submit("audit", "audit.submit('Acme')")
    with rig.watched(job) as seen:
        assert answered(job, 5)
        rig.restart_worker()
        assert answered(job, 20)
        with psycopg.connect(rig.environment["DATABASE_URL"]) as other:
            other.execute("SELECT FROM callboard.jobs WHERE parent_id = %s FOR UPDATE", (job.id,))
            go_on.set()
            other.execute("SELECT pg_sleep(3)")
        status = job.wait(TIMEOUT)
    assert status["state"] == "completed"
    stages = {stage["name"]: stage for stage in status["stages"]}
    withheld = stages["ask_provider"]["failed"]
    assert withheld > 0
    assert {name: (stage["total"], stage["succeeded"]) for name, stage in stages.items()} == {
        "generate_queries": (1, 1), "ask_provider": (ASKED, ASKED - withheld),
        "analyse_answer": (ASKED - withheld, ASKED - withheld), "score_providers": (1, 1), "save_insight": (3, 3),
    }  # fmt: skip
    # A stage begins when the one before it is completed.
    for (now,) in seen:
        states = [stage["state"] for stage in now["stages"]]
        assert states == sorted(states, key=["completed", "running", "pending"].index), states
    (error,) = [group for group in job.errors() if group["failed"]]
    assert (error["message"], error["failed"]) == ("422: the answer was withheld by a filter", withheld)
    assert [item["state"] for item in job.items(stage=1)].count("succeeded") == ASKED - withheld
    assert rig.rows("SELECT provider, insight <> '' FROM audits WHERE company = 'Acme' ORDER BY 1") == [
        ("north", True), ("south", True), ("west", True)
    ]  # fmt: skip
    lag = float(Path(rig.environment[loop_lag.FILE]).read_text(encoding="ascii"))
    print(f"the event loop was late by {1000 * lag:.0f} ms at most")  # noqa: T201 — measured
    assert lag < 1.5
    rig.assert_nothing_left()


def test_a_cancelled_audit_asks_nothing_more_and_goes_on_when_it_is_retried(rig: Rig, go_on: threading.Event) -> None:
    rig.world.seconds = 0.4
    (job,) = rig.submit("audit", "audit.submit('Initech')")
    assert answered(job, 10)
    assert job.cancel("enough")["state"] in ("running", "cancelled")
    go_on.set()
    status = job.wait(TIMEOUT)
    assert (status["state"], status["reason"]) == ("cancelled", "enough")
    assert status["started_at"] < status["finished_at"]
    asked, before = rig.world.calls["ask"], status["stages"][1]["succeeded"]
    assert 10 <= before < ASKED
    assert status["stages"][1]["cancelled"] > 0
    assert [stage["total"] for stage in status["stages"][2:]] == [0, 0, 0]

    rig.world.seconds = 0.01
    job.retry(["cancelled"])
    status = job.wait(TIMEOUT)
    assert status["state"] == "completed"
    again = ASKED - before
    assert again <= rig.world.calls["ask"] - asked < ASKED, "what was answered is not asked again"
    assert rig.rows("SELECT count(*) FROM audits WHERE company = 'Initech'") == [(3,)]
    rig.assert_nothing_left()
