"""Jobs of stages whose workers die while a stage is made and between two; what is said to them meanwhile."""

import json
import random
import time
from collections import Counter
from contextlib import suppress

import callboard
from callboard import Stage
from callboard.sql.limits import NO_LIMITS
from callboard.sql.pool import Conn, connect
from callboard.sql.reads import queries
from callboard.sql.rows import Event, NewStage, Outgoing, StageClaim
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import actions, jobs, outcomes, publishing, retry, stages, submission, sweep
from callboard.sql.writes.actions import NotPossible
from callboard.sql.writes.retry import RetrySelection
from tests.faults.rig import crowd
from tests.faults.rig.crowd import BY, broken, turn_around
from tests.faults.rig.points import HURRY, MARKS, POINTS, marks
from tests.faults.rig.scene import ACTORS, TIMEOUT, Scene
from tests.faults.test_control import begun
from tests.support.jobs import BAD, make_worker
from tests.support.workers import wait_until

MAKERS = "tests.faults.rig.makers"
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


def prove(on: Scene, job: callboard.Job, count: int = ITEMS) -> dict[str, Counter[int]]:
    """It completes, each stage with exactly its items, each of them once, and in the order of the results."""
    on.until(job, lambda status: status["state"] in JOB_FINAL, 240)
    found = on.status(job)
    assert found["state"] == "completed", found
    told = [(stage["total"], stage["succeeded"]) for stage in found["stages"]]
    assert told == [(count, count), (2 * count, 2 * count), (1, 1)], found
    runs = {}
    for stage in found["stages"]:
        made = callboard.Job(stage["job"], job._runtime)
        assert on.left_over(made) == NONE
        runs[stage["name"]] = on.ledger.runs(stage["job"])
        assert set(runs[stage["name"]]) == set(range(stage["total"]))
    second, last = (
        on.sql("SELECT args FROM callboard.items WHERE job_id = %s ORDER BY item", stage["job"])
        for stage in found["stages"][1:]
    )
    assert [json.loads(args)["kwargs"]["number"] for (args,) in second] == list(range(2 * count))
    assert json.loads(last[0][0])["args"] == [sum(range(2 * count))]
    on.prove_true()
    return runs


def test_workers_killed_while_they_make_a_stage_go_on_where_it_stood(on: Scene) -> None:
    marked = on.folder / "marks"
    marked.mkdir()
    points = "stage claimed,stage stored:3,stage stored,stage sealed,stage claimed,stage stored,stage sealed"
    plan = {POINTS: points, MARKS: str(marked), HURRY: "3"}
    job = staged()
    on.worker(env=plan, modules=(ACTORS, MAKERS, "tests.faults.rig.points"))
    with on.witness(job) as witness:
        runs = prove(on, job)
    assert witness.wrong == []
    assert [mark.point for mark in marks(marked)] == [point.split(":")[0] for point in points.split(",")]
    # What a worker had in hand, or not yet on record, may run again, nothing else does.
    assert sum(count - 1 for found in runs.values() for count in found.values()) <= 16 * len(marks(marked))


def test_a_worker_killed_between_two_stages_leaves_the_next_to_another(on: Scene) -> None:
    """It has neither the actor nor the functions of the last stage, so the job stands before it."""
    job = staged(count=20)
    first = on.worker(modules=(ACTORS, "tests.faults.rig.points"), env={HURRY: "3"})
    on.until(job, lambda status: status["stages"][1]["state"] == "completed")
    first.kill()
    on.workers.clear()
    assert [stage["state"] for stage in on.status(job)["stages"]] == ["completed", "completed", "pending"]
    assert on.status(job)["state"] == "running"
    on.worker(modules=(ACTORS, MAKERS))
    prove(on, job, 20)


def test_a_worker_asked_to_stop_gives_a_stage_back_at_once(on: Scene) -> None:
    job = staged("slowly")
    modules = (ACTORS, MAKERS)
    first = on.worker(modules=modules)
    on.until(job, lambda status: 0 < status["stages"][1]["total"] < 400)
    assert first.stop() == 0
    on.workers.clear()
    second = on.status(job)["stages"][1]
    assert 0 < second["total"] < 2 * ITEMS
    assert on.sql("SELECT maker, sealed FROM callboard.jobs WHERE id = %s", second["job"]) == [(None, False)]
    on.worker(modules=modules)
    runs = prove(on, job)
    assert sum(runs["second"].values()) == 2 * ITEMS, "asked to stop, nothing runs twice"


def test_a_database_that_goes_away_while_a_stage_is_made_is_waited_for(on: Scene) -> None:
    """The function is not called again: it goes on where it stands."""
    job = staged("slowly")
    worker = on.worker(modules=(ACTORS, MAKERS))
    on.until(job, lambda status: 0 < status["stages"][1]["total"] < 300)
    on.server.kill()
    on.server.start()
    prove(on, job)
    assert worker.output.count("makes the items of stage 'second'") == 1


def test_cancelled_while_a_stage_is_made_nothing_more_is_made_or_starts(on: Scene) -> None:
    job = staged("slowly")
    on.worker(modules=(ACTORS, MAKERS), processes=2)
    on.until(job, lambda status: 100 < status["stages"][1]["total"] < 500)
    second = callboard.Job(on.status(job)["stages"][1]["job"], job._runtime)
    with on.witness(job) as witness:
        said = time.time()
        job.cancel("enough")
        on.until(job, lambda status: status["state"] == "cancelled")
        total = on.status(job)["total"]
        maker = "SELECT maker FROM callboard.jobs WHERE id = %s"
        assert wait_until(lambda: on.sql(maker, second.id) == [(None,)], TIMEOUT)
    assert witness.wrong == []
    found = on.status(job)
    assert [stage["state"] for stage in found["stages"]] == ["completed", "cancelled", "cancelled"]
    assert found["total"] == total
    assert found["cancelled"] > 0
    assert begun(on, second, said + 1.0) == 0
    on.workers[0].kill()
    assert job.retry(["cancelled"]) == found["cancelled"]
    prove(on, job)


# Everybody at once --------------------------------------------------------------------------------------------------

ROUNDS = 80


class Crowd(crowd.Crowd):
    """Jobs of stages, and all that is done to them at the same time."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with connect(url) as conn:
            self.worker = make_worker(conn)
            self.jobs = [self._make(conn, on_failure) for on_failure in ("stop", "go on", "go on")]
            turn_around(conn, "items", "jobs")

    def _make(self, conn: Conn, on_failure: str) -> int:
        planned = [NewStage(f"s{n}", "work", "default", None, on_failure) for n in range(3)]
        job, found = stages.create(
            conn, planned, name="crowded", key=None, tenant="", metadata={}, created_by=None, limits=NO_LIMITS
        )
        submission.store_chunk(conn, found[0].id, 0, [(b'{"args":[],"kwargs":{}}', None)] * 20, keyed=False)
        submission.seal_job(conn, found[0].id)
        return job

    def work(self, conn: Conn, chance: random.Random, *, fails: float = 0.15) -> None:
        """Publish the next of a job, and record how that ended."""
        claim = publishing.claim_bulk(conn)
        sent: list[Outgoing] = []
        if claim is not None:
            until = min(claim.watermark + 8, claim.total)
            sent = [
                *publishing.bulk_items(conn, claim, claim.watermark, until),
                *publishing.claim_redo(conn, claim, 8),
            ]
            publishing.settle_outbox(conn, [out for out in sent if out.outbox is not None])
            publishing.publish_bulk(
                conn, claim, watermark=until, published=until - claim.watermark, keep=False
            )
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
        stages.follow(conn)
        making = stages.claim(conn, self.worker, ["work"], [])
        if making is None:
            return
        rows = stages.results(conn, making.source, ["succeeded"], -1, 100)
        self._store(conn, making, len(rows), chance)

    def _store(self, conn: Conn, making: StageClaim, count: int, chance: random.Random) -> None:
        if making.consumed > count:
            self.wrong.append(("fewer results than before", making, count))
        for at in range(making.consumed, count, 5):
            rows: list[tuple[bytes, str | None]] = [(b'{"args":[],"kwargs":{}}', None)] * min(5, count - at)
            if chance.random() < 0.1 or not stages.store(conn, making, at, rows):
                stages.leave(conn, making)
                return
        stages.seal(conn, making)

    def control(self, conn: Conn, chance: random.Random) -> None:
        """What people say."""
        saying = chance.choice(("cancel", "pause", "pause", "resume", "resume", *["retry"] * 3, "limit"))
        given = (
            RetrySelection(chance.choice((None, ("cancelled", "failed"))))
            if saying == "retry"
            else {"priority": chance.randrange(5)}
        )
        self.say(conn, chance.choice(self.jobs), saying, given)

    def sweep(self, conn: Conn, _: random.Random) -> None:
        jobs.close_stopped(conn)
        sweep.drop_messages_of_stopped_jobs(conn)
        stages.follow(conn)

    def finish(self, conn: Conn) -> None:
        """Gone on with, and with nothing that fails, every job of stages comes to its end."""
        chance = random.Random(0)
        for _ in range(40):
            conn.execute("UPDATE callboard.outbox SET claimed_until = NULL")
            conn.execute(
                "UPDATE callboard.jobs SET told_at = now() - interval '1 h' WHERE told_at IS NOT NULL"
            )
            self.sweep(conn, chance)
            for job in self.jobs:
                with suppress(NotPossible):
                    actions.resume(conn, job, BY)
                with suppress(NotPossible):
                    retry.retry(conn, job, BY, RetrySelection(("cancelled", "failed")))
            for _ in range(10):
                self.work(conn, chance, fails=0)
                self.make(conn, chance)
            for stage in (one.id for job in self.jobs for one in stages.of(conn, job)):
                lost = [(item, attempt) for item, attempt, _ in sweep.unheld_items(conn, stage, 500)]
                sweep.republish(conn, stage, lost)
            for out in publishing.claim_outbox(conn, 500):
                publishing.settle_outbox(conn, [out])
                now = time.monotonic()
                event = Event(out.job, out.item, out.attempt, "succeeded", 0.01, now, self.worker, result="1")
                outcomes.record(conn, [event], now)


def test_all_that_writes_at_once(fault_database_url: str) -> None:
    crowd = Crowd(fault_database_url)
    with connect(fault_database_url) as conn:
        recounts = crowd.at_once(["work", "work", "make", "make", "sweep", "control", "control"], ROUNDS)
        assert recounts > 10
        assert crowd.wrong == []
        for name in ("cancel", "pause", "resume", "retry"):
            assert crowd.done[name] > crowd.done[f"{name} refused"], crowd.done
        crowd.finish(conn)
        assert [crowd.state(conn, job) for job in crowd.jobs] == ["completed"] * 3
        assert queries.run(conn, queries.verify())["drift"] == []
        deadlocks = broken(conn)
    print(f"{recounts} recounts, {deadlocks} deadlocks: {dict(crowd.deadlocks)}, done: {dict(crowd.done)}")
    assert deadlocks == 0
