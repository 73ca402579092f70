"""Submitters that are killed: the job is absent, or can be finished, or is complete; and nothing is in it twice."""

import json
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import callboard
from callboard.commands.services import Process
from tests.faults.rig.scene import TIMEOUT, Scene
from tests.faults.rig.submitter import CHUNK, KILL, STAGES
from tests.support.workers import wait_until

ITEMS = 3 * CHUNK
#: The inputs stored when a submitter dies there.
STORED = {
    "before the first chunk": 0,
    "in the second COPY": CHUNK,
    "before the second COMMIT": CHUNK,
    "after the second COMMIT": 2 * CHUNK,
    "before the seal": ITEMS,
    "after the seal": ITEMS,
}
#: What a job's submission says of itself, by the job's name.
STANDING = "SELECT id, total, consumed, sealed, state::text, reason FROM callboard.jobs WHERE name = %s"


class Submitters:
    """Processes that submit; none outlives the test."""

    def __init__(self, on: Scene) -> None:
        self.on = on
        self.processes: list[Process] = []

    def start(self, *arguments: str, stage: str | None = None) -> Process:
        more = {"CALLBOARD_ACTORS": "tests.faults.rig.actors"}
        if stage:  # and room for what it publishes, however much of others' lies there that nobody takes
            more |= {KILL: stage, "CALLBOARD_QUEUE_DEPTH": "10000"}
        command = [sys.executable, "-m", "tests.faults.rig.submitter", *arguments]
        log = self.on.folder / f"submitter-{len(self.processes)}.log"
        process = Process(command, log=log, env={**os.environ, **self.on.environment, **more})
        self.processes.append(process)
        return process.start()

    def submit(self, name: str, *options: str, stage: str | None = None, items: int = ITEMS) -> Process:
        """`callboard submit`, of a file with so many lines."""
        file = self.on.folder / f"{items}.jsonl"
        if not file.exists():
            file.write_text("".join(json.dumps({"number": n}) + "\n" for n in range(items)))
        return self.start("callboard", "submit", "work", str(file), "--name", name, *options, stage=stage)

    @staticmethod
    def end(process: Process) -> int:
        """How it ended."""
        assert process.child is not None
        return process.child.wait(TIMEOUT)


@pytest.fixture
def submitters(on: Scene) -> Iterator[Submitters]:
    made = Submitters(on)
    yield made
    for process in made.processes:
        process.kill()


def standing(on: Scene, name: str) -> dict[str, Any]:
    """A job's submission as the database has it."""
    (row,) = on.sql(STANDING, name)
    return dict(zip(("id", "total", "consumed", "sealed", "state", "reason"), row, strict=True))


def test_killed_at_every_stage_it_goes_on_with_its_key(on: Scene, submitters: Submitters) -> None:
    dying = {stage: submitters.submit(stage, "--key", stage, stage=stage) for stage in STAGES}
    assert {stage: submitters.end(process) for stage, process in dying.items()} == dict.fromkeys(
        STAGES, -signal.SIGKILL
    )
    for stage, stored in STORED.items():
        found = standing(on, stage)
        assert (found["total"], found["consumed"]) == (stored, stored), stage
        assert found["sealed"] == (stage == "after the seal")
    on.worker()
    jobs = {}
    for stage in STAGES:
        jobs[stage] = callboard.submit("work", ({"number": n} for n in range(ITEMS)), key=stage)
        assert jobs[stage].id == standing(on, stage)["id"]
    for stage, job in jobs.items():
        runs = on.prove(job, total=ITEMS)
        print(f"{stage}: {runs.total()} runs of {ITEMS} items")
        assert set(on.ledger.attempts(job.id).values()) == {1}


def broken() -> Iterator[Any]:
    yield from ()
    raise OSError("it ends before it begins")


def test_killed_again_and_again_while_it_stores_and_publishes(on: Scene, submitters: Submitters) -> None:
    """`callboard submit` of the same file with the same key; the worker takes its items meanwhile."""
    chance, items, killed = random.Random(7), 40 * CHUNK, 0
    on.worker()
    with pytest.raises(OSError, match="before it begins"):
        callboard.submit("work", broken(), key="again", name="again")
    job = callboard.get(standing(on, "again")["id"])
    with on.witness(job) as witness:
        code: int | None = None
        while code != 0:
            far = standing(on, "again")["consumed"] + chance.randrange(0, 8 * CHUNK)
            process = submitters.submit("again", "--key", "again", items=items)
            assert wait_until(
                lambda: standing(on, "again")["consumed"] > far or not process.running(), TIMEOUT, pause=0.002
            )
            if far < items:
                process.kill()
                killed += 1
            code = submitters.end(process)
        runs = on.prove(job, total=items, witness=witness)
    assert killed >= 2
    arguments = on.sql("SELECT item, args FROM callboard.items WHERE job_id = %s ORDER BY item", job.id)
    assert [json.loads(args)["kwargs"]["number"] for _, args in arguments] == list(range(items))
    print(f"{killed} kills, {runs.total()} runs of {items} items, {on.ledger.twice(job.id)} twice")


def test_without_a_key_a_job_whose_submitter_is_gone_is_stopped_and_a_slow_one_is_not(
    on: Scene, submitters: Submitters, tmp_path: Path
) -> None:
    """The slow ones stand still for longer than their lease, until all of the dead were found."""
    gate = tmp_path / "gate"
    slow = [submitters.start("slow", str(gate)), submitters.start("block", str(gate))]
    dead = {"in the second COPY": CHUNK, "before the seal": ITEMS}
    dying = {stage: submitters.submit(stage, stage=stage) for stage in (*dead, "after the seal")}
    with_key = submitters.submit("with a key", "--key", "k", stage="before the seal")
    assert wait_until(lambda: on.sql(STANDING, "block") and standing(on, "block")["total"], TIMEOUT)
    killed = submitters.start("block", str(tmp_path / "never"))
    assert wait_until(
        lambda: [row[1] for row in on.sql(STANDING, "block") if row[1] == 15] == [15, 15], TIMEOUT
    )
    killed.kill()
    for process in (*dying.values(), with_key):
        assert submitters.end(process) == -signal.SIGKILL
    on.worker()
    for stage, stored in dead.items():
        assert wait_until(lambda: standing(on, stage)["state"] == "failed", TIMEOUT), standing(on, stage)
        reason = standing(on, stage)["reason"]
        assert f"its submission broke off: its process was not heard of any more. {stored} items" in reason
        assert "Submit it anew: with a key" in reason
    assert wait_until(
        lambda: sorted(row[4] for row in on.sql(STANDING, "block")) == ["failed", "running"], TIMEOUT
    )
    on.prove(callboard.get(standing(on, "after the seal")["id"]), total=ITEMS)
    found = standing(on, "with a key")
    assert (found["state"], found["sealed"], found["total"]) == ("running", False, ITEMS)
    assert standing(on, "slow")["state"] == "running"
    gate.touch()
    assert [submitters.end(process) for process in slow] == [0, 0]
    for name in ("slow", "block"):
        (job,) = (row[0] for row in on.sql(STANDING, name) if row[3])
        assert set(on.prove(callboard.get(job), total=30).values()) == {1}
    on.until(callboard.get(found["id"]), lambda status: status["stalled"] is not None)
    assert callboard.get(found["id"]).status()["stalled"] == (
        f"not sealed: its submission broke off at input {ITEMS}; submit it again with the same key, and it goes on"
    )
    assert callboard.submit("work", ({"number": n} for n in range(ITEMS)), key="k").id == found["id"]
    on.prove(callboard.get(found["id"]), total=ITEMS)


def test_a_job_opened_in_an_actor_is_stopped_with_its_worker(on: Scene) -> None:
    """The next attempt at the actor's item opens another, and stands still in it for longer than its lease."""
    gate = on.folder / "gate"
    modules = ("tests.faults.rig.actors", "tests.faults.rig.openers")
    worker = on.worker(modules=modules)
    job = on.submit("opens", [str(gate)])
    assert wait_until(lambda: on.sql(STANDING, "inner") and standing(on, "inner")["total"] == 15, TIMEOUT)
    worker.kill()

    def states() -> list[str]:
        return [row[4] for row in sorted(on.sql(STANDING, "inner"))]

    on.until(job, lambda _: states() == ["failed", "running"])
    gate.touch()
    on.prove(job, total=1)
    inner = callboard.get(max(row[0] for row in on.sql(STANDING, "inner")))
    on.prove(inner, total=30)
