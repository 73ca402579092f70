"""Workers that are killed over messages that carry many items: what has no outcome runs again, and nothing else."""

import random
from typing import Any

from callboard.sql import timings
from tests.faults.rig.points import HURRY
from tests.faults.rig.scene import ACTORS, Scene, mixed

ITEMS, KILLS, CHUNK = 3_000, 5, 20


def kill_again_and_again(on: Scene, job: Any) -> None:
    """As a supervisor starts them again."""
    chance = random.Random(20261126)
    for _ in range(KILLS):
        before = on.ledger.runs(job.id).total()
        step = chance.randrange(50, 400)
        on.until(
            job,
            lambda s: s["finished_at"] is not None or on.ledger.runs(job.id).total() > before + step,
        )
        victim = chance.choice(on.workers)
        assert victim.process.running()
        assert on.status(job)["finished_at"] is None
        victim.kill()


def test_killed_many_times_with_items_one_by_one(on: Scene) -> None:
    for _ in range(2):
        on.worker()
    job = on.submit("work", mixed(ITEMS, 0.02), chunk=CHUNK)
    with on.witness(job) as witness:
        kill_again_and_again(on, job)
        runs = on.prove_mixed(job, ITEMS, witness=witness, timeout=240)
    again = on.ledger.twice(job.id)
    assert again < KILLS * 16 * 20  # far less than whole messages for each thread
    print(f"{KILLS} kills, {runs.total()} runs, {again} runs twice")


def test_killed_many_times_with_items_in_batches(on: Scene) -> None:
    """What a batch had in hand runs again item by item; one in twenty fails all of its tries."""
    for _ in range(2):
        on.worker()
    fates = ("fail" if n % 20 == 0 else "succeed" for n in range(ITEMS))
    items = ({"number": n, "fate": fate, "seconds": 0.2} for n, fate in enumerate(fates))
    job = on.submit("uploads", items, chunk=CHUNK)
    with on.witness(job) as witness:
        kill_again_and_again(on, job)
        runs = on.prove(job, total=ITEMS, failed=ITEMS // 20, witness=witness, timeout=240)
    print(f"{KILLS} kills, {runs.total()} runs, {on.ledger.twice(job.id)} runs twice")


def test_a_batch_with_an_item_that_kills_its_worker(on: Scene) -> None:
    """That one is failed at the third death; the others of its batch succeed, and are charged with nothing."""
    items: list[dict[str, Any]] = [{"number": n, "seconds": 0.3 if n < CHUNK else 0.05} for n in range(100)]
    items[7]["how"] = "kill"
    on.worker(env={HURRY: "4"}, modules=(ACTORS, "tests.faults.rig.points"))
    job = on.submit("uploads", items, chunk=CHUNK)
    with on.witness(job) as witness:
        runs = on.prove(job, total=100, failed=1, witness=witness, timeout=240)
    (failed,) = on.sql("SELECT item, crashes FROM callboard.items WHERE job_id = %s AND crashes > 0", job.id)
    assert failed == (7, timings.MAX_CRASHES)
    assert on.status(job)["crashes"] == timings.MAX_CRASHES
    assert runs[7] == timings.MAX_CRASHES
