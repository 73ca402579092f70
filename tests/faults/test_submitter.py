"""Submitters are killed: the job is absent, can be continued, or is complete, and no item is in it twice."""

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
from callboard.middleware.message.envelope import decode_args
from tests.faults.rig.scenario import TIMEOUT, Scenario
from tests.faults.rig.submitter import CHUNK, GATE, KILL, SEND_STAGES, SENDS, STAGES
from tests.support.forked import ForkedProcess
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

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.processes: list[Process] = []

    def start(self, *arguments: str, stage: str | None = None, gate: Path | None = None) -> Process:
        more = {"CALLBOARD_ACTORS": "tests.faults.rig.actors"} | ({GATE: str(gate)} if gate else {})
        if stage:  # and room for what it publishes, however much of others' lies there that nobody takes
            more |= {KILL: stage, "CALLBOARD_QUEUE_DEPTH": "10000"}
        command = [sys.executable, "-m", "tests.faults.rig.submitter", *arguments]
        log = self.scenario.folder / f"submitter-{len(self.processes)}.log"
        process = ForkedProcess(command, log=log, env={**os.environ, **self.scenario.environment, **more})
        self.processes.append(process)
        return process.start()

    def submit(
        self, name: str, *options: str, stage: str | None = None, items: int = ITEMS, gate: Path | None = None
    ) -> Process:
        """`callboard submit`, of a file with so many lines."""
        file = self.scenario.folder / f"{items}.jsonl"
        if not file.exists():
            file.write_text("".join(json.dumps({"number": n}) + "\n" for n in range(items)))
        arguments = ("callboard", "submit", "work", str(file), "--name", name, *options)
        return self.start(*arguments, stage=stage, gate=gate)

    @staticmethod
    def end(process: Process) -> int:
        """How it ended."""
        assert process.child is not None
        return process.child.wait(TIMEOUT)


@pytest.fixture
def submitters(scenario: Scenario) -> Iterator[Submitters]:
    made = Submitters(scenario)
    yield made
    for process in made.processes:
        process.kill()


def standing(scenario: Scenario, name: str) -> dict[str, Any]:
    """A job's submission as the database has it."""
    (row,) = scenario.sql(STANDING, name)
    return dict(zip(("id", "total", "consumed", "sealed", "state", "reason"), row, strict=True))


def test_killed_at_every_stage_it_goes_on_with_its_key(scenario: Scenario, submitters: Submitters) -> None:
    dying = {stage: submitters.submit(stage, "--key", stage, stage=stage) for stage in STAGES}
    assert {stage: submitters.end(process) for stage, process in dying.items()} == dict.fromkeys(
        STAGES, -signal.SIGKILL
    )
    for stage, stored in STORED.items():
        found = standing(scenario, stage)
        assert (found["total"], found["consumed"]) == (stored, stored), stage
        assert found["sealed"] == (stage == "after the seal")
    scenario.start_worker()
    jobs = {}
    for stage in STAGES:
        jobs[stage] = callboard.submit("work", ({"number": n} for n in range(ITEMS)), key=stage)
        assert jobs[stage].id == standing(scenario, stage)["id"]
    for stage, job in jobs.items():
        runs = scenario.assert_completed(job, total=ITEMS)
        print(f"{stage}: {runs.total()} runs of {ITEMS} items")
        assert set(scenario.run_log.attempt_counts(job.id).values()) == {1}


def test_a_sender_killed_at_every_stage_loses_nothing_that_it_sent(scenario: Scenario, submitters: Submitters) -> None:
    """What `send` has returned for is run, and counts once, as does all else that is stored."""
    firsts = dict(zip(SEND_STAGES, range(0, SENDS * len(SEND_STAGES), SENDS), strict=True))
    dying = {stage: submitters.start("send", str(first), stage=stage) for stage, first in firsts.items()}
    assert {stage: submitters.end(process) for stage, process in dying.items()} == dict.fromkeys(dying, -signal.SIGKILL)
    scenario.start_worker()
    counts = "SELECT sum(total), sum(succeeded), sum(published) FROM callboard.jobs WHERE standing_on IS NOT NULL"
    assert wait_until(lambda: len(set(*scenario.sql(counts))) == 1, TIMEOUT)
    assert wait_until(lambda: scenario.sql("SELECT count(*) FROM callboard.outbox") == [(0,)], TIMEOUT)
    scenario.assert_counters_true()
    stored = [decode_args(args)[0][0] for (args,) in scenario.sql("SELECT args FROM callboard.items")]
    told = [int(line) for process in dying.values() for line in process.log.read_text().splitlines()]
    assert len(stored) == len(set(stored))
    assert set(told) <= set(stored)
    print(f"{len(told)} sends returned before the kills, and {len(stored)} messages are stored")


def broken() -> Iterator[Any]:
    yield from ()
    raise OSError("it ends before it begins")


def test_killed_again_and_again_while_it_stores_and_publishes(scenario: Scenario, submitters: Submitters) -> None:
    """`callboard submit` of the same file with the same key; the worker takes its items meanwhile."""
    chance, items, killed, gate = random.Random(7), 25 * CHUNK, 0, scenario.folder / "gate"
    scenario.start_worker()
    with pytest.raises(OSError, match="before it begins"):
        callboard.submit("work", broken(), key="again", name="again")
    job = callboard.get(standing(scenario, "again")["id"])
    with scenario.watch(job) as watcher:
        code: int | None = None
        while code != 0:
            far = standing(scenario, "again")["consumed"] + chance.randrange(0, 8 * CHUNK)
            process = submitters.submit("again", "--key", "again", items=items, gate=gate)
            if killed < 4 and far < items:
                assert wait_until(
                    lambda: standing(scenario, "again")["consumed"] > far or not process.running(), TIMEOUT, pause=0.01
                )
                process.kill()
                killed += 1
            else:
                gate.touch()
            code = submitters.end(process)
        runs = scenario.assert_completed(job, total=items, watcher=watcher)
    assert killed >= 2
    arguments = scenario.sql("SELECT item, args FROM callboard.items WHERE job_id = %s ORDER BY item", job.id)
    assert [decode_args(args)[1]["number"] for _, args in arguments] == list(range(items))
    print(f"{killed} kills, {runs.total()} runs of {items} items, {scenario.run_log.repeated(job.id)} twice")


def test_without_a_key_a_job_whose_submitter_is_gone_is_stopped_and_a_slow_one_is_not(
    scenario: Scenario, submitters: Submitters, tmp_path: Path
) -> None:
    """The slow ones stand still for longer than their lease, until all of the dead were found."""
    gate = tmp_path / "gate"
    slow = [submitters.start("slow", str(gate)), submitters.start("block", str(gate))]
    dead = {"in the second COPY": CHUNK, "before the seal": ITEMS}
    dying = {stage: submitters.submit(stage, stage=stage) for stage in (*dead, "after the seal")}
    with_key = submitters.submit("with a key", "--key", "k", stage="before the seal")
    assert wait_until(lambda: scenario.sql(STANDING, "block") and standing(scenario, "block")["total"], TIMEOUT)
    killed = submitters.start("block", str(tmp_path / "never"))
    assert wait_until(lambda: [row[1] for row in scenario.sql(STANDING, "block") if row[1] == 15] == [15, 15], TIMEOUT)
    killed.kill()
    for process in (*dying.values(), with_key):
        assert submitters.end(process) == -signal.SIGKILL
    scenario.start_worker()
    for stage, stored in dead.items():
        assert wait_until(lambda: standing(scenario, stage)["state"] == "failed", TIMEOUT), standing(scenario, stage)
        reason = standing(scenario, stage)["reason"]
        assert f"its submission broke off: its process was not heard of any more. {stored} items" in reason
        assert "Submit it anew: with a key" in reason
    assert wait_until(
        lambda: sorted(row[4] for row in scenario.sql(STANDING, "block")) == ["failed", "running"], TIMEOUT
    )
    scenario.assert_completed(callboard.get(standing(scenario, "after the seal")["id"]), total=ITEMS)
    for name in ("with a key", "slow"):  # their first items may wait behind those of the others
        assert wait_until(lambda: standing(scenario, name)["state"] == "running", TIMEOUT), standing(scenario, name)
    found = standing(scenario, "with a key")
    assert (found["sealed"], found["total"]) == (False, ITEMS)
    gate.touch()
    assert [submitters.end(process) for process in slow] == [0, 0]
    for name in ("slow", "block"):
        (job,) = (row[0] for row in scenario.sql(STANDING, name) if row[3])
        assert set(scenario.assert_completed(callboard.get(job), total=30).values()) == {1}
    broke_off = f"its submission broke off at input {ITEMS}; submit it again with the same key, and it goes on"
    scenario.wait_for(callboard.get(found["id"]), lambda status: status["stalled"] == broke_off)
    assert callboard.submit("work", ({"number": n} for n in range(ITEMS)), key="k").id == found["id"]
    scenario.assert_completed(callboard.get(found["id"]), total=ITEMS)


def test_a_job_opened_in_an_actor_is_stopped_with_its_worker(scenario: Scenario) -> None:
    """The next attempt at the actor's item opens another, and stands still in it for longer than its lease."""
    gate = scenario.folder / "gate"
    modules = ("tests.faults.rig.actors", "tests.faults.rig.job_opener")
    worker = scenario.start_worker(modules=modules)
    job = scenario.submit("opens", [str(gate)])
    assert wait_until(lambda: scenario.sql(STANDING, "inner") and standing(scenario, "inner")["total"] == 15, TIMEOUT)
    worker.kill()

    def states() -> list[str]:
        return [row[4] for row in sorted(scenario.sql(STANDING, "inner"))]

    scenario.wait_for(job, lambda _: states() == ["failed", "running"])
    gate.touch()
    scenario.assert_completed(job, total=1)
    inner = callboard.get(max(row[0] for row in scenario.sql(STANDING, "inner")))
    scenario.assert_completed(inner, total=30)
