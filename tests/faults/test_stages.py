"""Jobs of stages: workers die while a stage is made and between two stages, and actions come meanwhile."""

import random
import time
from collections import Counter
from contextlib import suppress

import callboard
from callboard import Stage
from callboard.commands.services import Server
from callboard.middleware.message.envelope import decode_args
from callboard.sql.limits import NO_LIMITS
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import Event, Outgoing, PlannedStage, StageClaim
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import actions, jobs, outcomes, publishing, retry_action, stages, submission, sweep
from callboard.sql.writes.requests import NotPossible
from callboard.sql.writes.retry_action import RetrySelection
from tests.faults.rig.concurrent_writers import BY, ConcurrentWriters, broken_deadlocks, reverse_rows
from tests.faults.rig.scenario import ACTORS, TIMEOUT, Scenario
from tests.faults.test_actions import runs_begun
from tests.support.jobs import BAD, claim_outbox, make_worker, unheld
from tests.support.workers import wait_until

MAKERS = "tests.faults.rig.stage_makers"
ITEMS = 300
NONE = {"running": 0, "outbox": 0}


def staged(make: str = "again", count: int = ITEMS, seconds: float = 0.0) -> callboard.Job:
    """Three stages: some items, two of each result, one of all."""
    items = ({"number": n, "fate": "result", "seconds": seconds} for n in range(count))
    plan = [
        Stage("work", name="first", items=items),
        Stage("work", name="second", make=f"{MAKERS}:{make}"),
        Stage("summed", make=f"{MAKERS}:total"),
    ]
    return callboard.stages("staged", plan)


def prove(scenario: Scenario, job: callboard.Job, count: int = ITEMS) -> dict[str, Counter[int]]:
    """It completes, each stage with exactly its items, each of them once, and in the order of the results."""
    scenario.wait_for(job, lambda status: status["state"] in JOB_FINAL, 2 * TIMEOUT)
    found = scenario.status(job)
    assert found["state"] == "completed", found
    told = [(stage["total"], stage["succeeded"]) for stage in found["stages"]]
    assert told == [(count, count), (2 * count, 2 * count), (1, 1)], found
    runs = {}
    for stage in found["stages"]:
        made = callboard.Job(stage["job"], job._runtime)
        assert scenario.leftover_rows(made) == NONE
        runs[stage["name"]] = scenario.run_log.run_counts(stage["job"])
        assert set(runs[stage["name"]]) == set(range(stage["total"]))
    second, last = (
        scenario.sql("SELECT args FROM callboard.items WHERE job_id = %s ORDER BY item", stage["job"])
        for stage in found["stages"][1:]
    )
    assert [decode_args(args)[1]["number"] for (args,) in second] == list(range(2 * count))
    assert decode_args(last[0][0])[0] == (sum(range(2 * count)),)
    scenario.assert_counters_true()
    return runs


def test_workers_killed_while_they_make_a_stage_go_on_where_it_stood(scenario: Scenario) -> None:
    plan = [
        "stage claimed", "stage stored:3", "stage stored", "stage sealed", "stage claimed", "stage stored",
        "stage sealed",
    ]  # fmt: skip
    job = staged()
    scenario.start_worker(modules=(ACTORS, MAKERS), short_periods=3, kill_points=plan)
    with scenario.watch(job) as watcher:
        runs = prove(scenario, job)
    assert watcher.wrong == []
    assert [death.point for death in scenario.deaths()] == [point.split(":")[0] for point in plan]
    # What a worker had in hand, or not yet on record, may run again, nothing else does. Each of its eight threads may
    # have begun two others until it was dead.
    may = sum(death.held + 16 for death in scenario.deaths())
    assert sum(count - 1 for found in runs.values() for count in found.values()) <= may


def test_a_worker_killed_between_two_stages_leaves_the_next_to_another(scenario: Scenario) -> None:
    """It has neither the actor nor the functions of the last stage, so the job stands before it."""
    job = staged(count=20)
    first = scenario.start_worker(short_periods=3)
    scenario.wait_for(job, lambda status: status["stages"][1]["state"] == "completed")
    first.kill()
    scenario.workers.clear()
    assert [stage["state"] for stage in scenario.status(job)["stages"]] == ["completed", "completed", "pending"]
    assert scenario.status(job)["state"] == "running"
    scenario.start_worker(modules=(ACTORS, MAKERS))
    prove(scenario, job, 20)


def test_a_worker_asked_to_stop_gives_a_stage_back_at_once(scenario: Scenario) -> None:
    job, gate = staged("slowly"), scenario.folder / "gate"
    modules, env = (ACTORS, MAKERS), {"CALLBOARD_TEST_GATE": str(gate)}
    first = scenario.start_worker(modules=modules, env=env)
    scenario.wait_for(job, lambda status: status["stages"][1]["total"] > 0)
    assert first.stop() == 0
    gate.touch()
    scenario.workers.clear()
    second = scenario.status(job)["stages"][1]
    assert 0 < second["total"] < 2 * ITEMS
    assert scenario.sql("SELECT maker, sealed FROM callboard.jobs WHERE id = %s", second["job"]) == [(None, False)]
    scenario.start_worker(modules=modules, env=env)
    runs = prove(scenario, job)
    assert sum(runs["second"].values()) == 2 * ITEMS, "asked to stop, nothing runs twice"


def test_a_database_that_goes_away_while_a_stage_is_made_is_waited_for(
    scenario: Scenario, breakable_postgres: Server
) -> None:
    """The function is not called again: it goes on where it stands."""
    job, gate = staged("slowly"), scenario.folder / "gate"
    worker = scenario.start_worker(modules=(ACTORS, MAKERS), env={"CALLBOARD_TEST_GATE": str(gate)})
    scenario.wait_for(job, lambda status: status["stages"][1]["total"] > 0)
    breakable_postgres.kill()
    breakable_postgres.start()
    gate.touch()
    prove(scenario, job)
    said = "the items of stage 'second', job"
    assert wait_until(lambda: worker.output.count(said), TIMEOUT)  # its master passes it on
    assert worker.output.count(said) == 1


def test_cancelled_while_a_stage_is_made_nothing_more_is_made_or_starts(scenario: Scenario) -> None:
    job, gate = staged("gated"), scenario.folder / "gate"
    scenario.start_worker(modules=(ACTORS, MAKERS), processes=2, env={"CALLBOARD_TEST_GATE": str(gate)})
    scenario.wait_for(job, lambda status: status["stages"][1]["total"] > 100)
    second = callboard.Job(scenario.status(job)["stages"][1]["job"], job._runtime)
    with scenario.watch(job) as watcher:
        job.cancel("enough")
        scenario.all_heard(second)
        heard = time.time()
        scenario.wait_for(job, lambda status: status["state"] == "cancelled")
        total = scenario.status(job)["total"]
        maker = "SELECT maker FROM callboard.jobs WHERE id = %s"
        assert wait_until(lambda: scenario.sql(maker, second.id) == [(None,)], TIMEOUT)
    assert watcher.wrong == []
    found = scenario.status(job)
    assert [stage["state"] for stage in found["stages"]] == ["completed", "cancelled", "cancelled"]
    assert found["total"] == total
    assert found["cancelled"] > 0
    assert runs_begun(scenario, second, heard) == 0
    gate.touch()
    scenario.workers[0].kill()
    assert job.retry(["cancelled"]) == found["cancelled"]
    prove(scenario, job)


# Everybody at once --------------------------------------------------------------------------------------------------

ROUNDS = 80


class Writers(ConcurrentWriters):
    """Jobs of stages, and all that is done to them at the same time."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with connect(url) as conn:
            self.worker = make_worker(conn)
            self.jobs = [self._make(conn, on_failure) for on_failure in ("stop", "go on", "go on")]
            reverse_rows(conn, "items", "jobs")

    def _make(self, conn: Conn, on_failure: str) -> int:
        planned = [PlannedStage(f"s{n}", "work", "default", None, on_failure) for n in range(3)]
        job, found = stages.create(
            conn, planned, name="crowded", key=None, tenant="", metadata={}, created_by=None, limits=NO_LIMITS
        )
        submission.store_chunk(conn, found[0].id, 0, [(b'{"args":[],"kwargs":{}}', None)] * 20, keyed=False)
        submission.seal_job(conn, found[0].id)
        return job

    def work(self, conn: Conn, chance: random.Random, *, fails: float = 0.15) -> None:
        """Publish the next of a job, and record how that ended."""
        claim = publishing.claim_job(conn)
        sent: list[Outgoing] = []
        if claim is not None:
            until = min(claim.watermark + 8, claim.total)
            sent = [
                *publishing.bulk_items(conn, claim, claim.watermark, until)[0],
                *publishing.claim_in_turn(conn, claim, 8),
            ]
            publishing.confirm_outbox(conn, [out for out in sent if out.outbox is not None])
            publishing.advance_watermark(conn, claim, watermark=until, published=until - claim.watermark, keep=False)
        now = time.monotonic()
        for out in sent:
            failed = chance.random() < fails
            event = Event(
                out.job, out.item, out.attempt, "failed" if failed else "succeeded", 0.01, now, self.worker,
                BAD if failed else None, None, None if failed else "1",
            )  # fmt: skip
            outcomes.record(conn, [event], now)

    def make(self, conn: Conn, chance: random.Random) -> None:
        """Make a stage, or a part of it."""
        stages.update_parents(conn)
        making = stages.claim_stage(conn, self.worker, ["work"], [])
        if making is None:
            return
        rows = stages.results_page(conn, making.source, ["succeeded"], -1, 100)
        self._store(conn, making, len(rows), chance)

    def _store(self, conn: Conn, making: StageClaim, count: int, chance: random.Random) -> None:
        if making.consumed > count:
            self.wrong.append(("fewer results than before", making, count))
        for at in range(making.consumed, count, 5):
            rows: list[tuple[bytes, str | None]] = [(b'{"args":[],"kwargs":{}}', None)] * min(5, count - at)
            if chance.random() < 0.1 or not stages.store_inputs(conn, making, at, rows):
                stages.release_claim(conn, making)
                return
        stages.seal_stage(conn, making)

    def take_action(self, conn: Conn, chance: random.Random) -> None:
        """A random action on a random job."""
        action = chance.choice(("cancel", "pause", "pause", "resume", "resume", *["retry"] * 3, "limit"))
        given = (
            RetrySelection(chance.choice((None, ("cancelled", "failed"))))
            if action == "retry"
            else {"priority": chance.randrange(5)}
        )
        self.act(conn, chance.choice(self.jobs), action, given)

    def sweep(self, conn: Conn, _: random.Random) -> None:
        jobs.close_stopped(conn)
        sweep.drop_messages_of_ended_jobs(conn)
        stages.update_parents(conn)

    def finish(self, conn: Conn) -> None:
        """Without further failures, every job of stages ends."""
        chance = random.Random(0)
        conn.execute("UPDATE callboard.jobs SET publish_until = NULL")  # of those whose step broke off
        for _ in range(40):
            conn.execute("UPDATE callboard.outbox SET claimed_until = NULL")
            conn.execute("UPDATE callboard.jobs SET control_at = now() - interval '1 h' WHERE control_at IS NOT NULL")
            self.sweep(conn, chance)
            for job in self.jobs:
                with suppress(NotPossible):
                    actions.resume(conn, job, BY)
                with suppress(NotPossible):
                    retry_action.retry(conn, job, BY, RetrySelection(("cancelled", "failed")))
            for _ in range(10):
                self.work(conn, chance, fails=0)
                self.make(conn, chance)
            for stage in (one.id for job in self.jobs for one in stages.list_stages(conn, job)):
                lost = unheld(conn, stage, 500)
                sweep.republish(conn, stage, lost)
            for out in claim_outbox(conn, 500):
                publishing.confirm_outbox(conn, [out])
                now = time.monotonic()
                event = Event(out.job, out.item, out.attempt, "succeeded", 0.01, now, self.worker, result="1")
                outcomes.record(conn, [event], now)


def test_all_that_writes_at_once(fault_database_url: str) -> None:
    writers = Writers(fault_database_url)
    with connect(fault_database_url) as conn:
        steps = ["work", "work", "make", "make", "sweep", "take_action", "take_action"]
        writers.run(steps, ROUNDS, actions=["cancel", "pause", "resume", "retry"], recounts=11)
        assert writers.wrong == []
        writers.finish(conn)
        # One that was cancelled while its last items ran, which succeeded, stays cancelled: it has nothing to retry.
        left = "SELECT name FROM callboard.jobs WHERE parent_id = %s AND NOT (sealed AND succeeded = total)"
        assert [(job, stage) for job in writers.jobs for (stage,) in conn.execute(left, (job,))] == []
        assert {writers.state(conn, job) for job in writers.jobs} <= {"completed", "cancelled"}
        assert queries.run(conn, queries.verify())["drift"] == []
        deadlocks = broken_deadlocks(conn)
    print(f"{writers.recounts} recounts, {deadlocks} deadlocks: {dict(writers.deadlocks)}, done: {dict(writers.done)}")
    assert deadlocks == 0
