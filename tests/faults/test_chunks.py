"""Workers are killed while they run messages that carry many items. Only items without an outcome run again."""

import random
from contextlib import ExitStack
from typing import Any

import callboard
from callboard.sql import timings
from tests.faults.rig.scenario import ACTORS, BLAMELESS, TIMEOUT, Scenario
from tests.faults.test_actions import runs_begun
from tests.faults.test_kill import interrupted, kill_at_work, run_when_over
from tests.support.workers import wait_until

ITEMS, KILLS, CHUNK = 700, 5, 20


def test_nothing_waits_for_slow_items_that_came_in_the_same_message(scenario: Scenario) -> None:
    """The publisher takes the actor for fast. Another process gets the items that the busy one has not begun; each
    counts once, also if the first is killed then.
    """
    gate = scenario.folder / "gate"
    busy = scenario.start_worker(threads=4)
    items: list[dict[str, Any]] = [{"number": n} for n in range(120)]
    for item in items[:4]:
        item["gate"] = str(gate)
    scenario.sql("UPDATE callboard.actors SET mean_seconds = 0.0001 WHERE name = 'work'")
    job = scenario.submit("work", items)
    running = "SELECT count(*) FROM callboard.running WHERE job_id = %s"
    assert wait_until(lambda: scenario.sql(running, job.id) == [(4,)], TIMEOUT)
    assert scenario.status(job)["succeeded"] == 0
    scenario.start_worker(threads=4)
    scenario.wait_for(job, lambda status: status["succeeded"] == 116)
    assert scenario.run_log.run_counts(job.id).total() == 120
    busy.kill()
    gate.touch()
    runs = scenario.assert_completed(job, total=120)
    assert {item: count for item, count in runs.items() if count > 1} == dict.fromkeys(range(4), 2)


def test_an_idle_process_gets_what_a_busy_one_has_prefetched(scenario: Scenario) -> None:
    """It came by itself, before anybody else was there. No death is charged to it when the busy process is killed."""
    gate = scenario.folder / "gate"
    busy = scenario.start_worker(threads=4)
    job = scenario.submit("work", [{"number": n, "gate": str(gate)} for n in range(4)])
    running = "SELECT count(*) FROM callboard.running WHERE job_id = %s"
    assert wait_until(lambda: scenario.sql(running, job.id) == [(4,)], TIMEOUT)
    scenario.broker.get_actor("work").send(number=4)
    sent = "SELECT id, published, succeeded, crashes FROM callboard.jobs WHERE standing_on IS NOT NULL"
    assert wait_until(lambda: [row[1:] for row in scenario.sql(sent)] == [(1, 0, 0)], TIMEOUT)
    assert wait_until(lambda: scenario.ready_messages() == 0, TIMEOUT)
    scenario.start_worker(threads=4)
    assert wait_until(lambda: [row[1:] for row in scenario.sql(sent)] == [(1, 1, 0)], TIMEOUT)
    assert scenario.sql(running, job.id) == [(4,)]
    busy.kill()
    gate.touch()
    assert set(scenario.assert_completed(job, total=4).values()) == {2}
    ((standing, *counts),) = scenario.sql(sent)
    assert counts == [1, 1, 0]
    assert scenario.run_log.run_counts(standing) == {0: 1}


def test_killed_many_times_with_items_in_batches(scenario: Scenario) -> None:
    """The items of a killed batch run again one by one; one in twenty fails all of its tries. A supervisor starts the
    workers again.
    """
    for _ in range(2):
        scenario.start_worker(modules=(ACTORS, BLAMELESS))
    chance = random.Random(20261126)
    watched: list[tuple[callboard.Job, Any]] = []
    with ExitStack() as stack:

        def submitted() -> callboard.Job:
            fates = ("fail" if n % 20 == 0 else "succeed" for n in range(ITEMS))
            items = ({"number": n, "fate": fate, "seconds": 0.3} for n, fate in enumerate(fates))
            job = scenario.submit("uploads", items, chunk=CHUNK)
            watched.append((job, stack.enter_context(scenario.watch(job))))
            return job

        def over(job: callboard.Job) -> bool:
            return scenario.status(job)["finished_at"] is not None

        job, killed = submitted(), 0
        while killed < KILLS:
            # However slow this test is, a job goes on.
            job = submitted() if over(job) else job
            before, step = runs_begun(scenario, job, 0), chance.randrange(20, 200)
            scenario.wait_for(
                job, lambda s: s["finished_at"] is not None or runs_begun(scenario, job, 0) > before + step
            )
            killed += kill_at_work(scenario, job, chance.choice(scenario.workers))
        for job, watcher in watched:
            scenario.assert_completed(job, total=ITEMS, failed=ITEMS // 20, watcher=watcher, timeout=600)
    assert len(set().union(*(interrupted(scenario, job) for job, _ in watched))) == KILLS
    assert [run_when_over(scenario, job) for job, _ in watched] == [[]] * len(watched)
    again = [scenario.run_log.repeated(job.id) for job, _ in watched]
    print(f"{KILLS} kills, {scenario.starts} starts, {again} runs twice")


def test_a_batch_with_an_item_that_kills_its_worker(scenario: Scenario) -> None:
    """The deadly item is failed at the third death; the others succeed, and no death is charged to them."""
    items: list[dict[str, Any]] = [{"number": n, "seconds": 0.3 if n < CHUNK else 0.05} for n in range(100)]
    items[7]["how"] = "kill"
    scenario.start_worker(short_periods=4)
    job = scenario.submit("uploads", items, chunk=CHUNK)
    with scenario.watch(job) as watcher:
        runs = scenario.assert_completed(job, total=100, failed=1, watcher=watcher, timeout=600)
    (failed,) = scenario.sql("SELECT item, crashes FROM callboard.items WHERE job_id = %s AND crashes > 0", job.id)
    assert failed == (7, timings.MAX_CRASHES)
    assert scenario.status(job)["crashes"] == timings.MAX_CRASHES
    assert runs[7] == timings.MAX_CRASHES
