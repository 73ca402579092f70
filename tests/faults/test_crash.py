"""An item that kills its worker each time is failed at the third death, and no death is charged to its neighbours."""

import json
from collections import Counter
from typing import Any

import callboard
from callboard.sql import timings
from tests.faults.rig.scenario import TIMEOUT, Scenario
from tests.support.workers import wait_until

#: Every way to die.
WAYS = ("exit", "segfault", "kill")
ITEMS = 100
#: What the record says of each item.
STANDING = (
    "SELECT item, state::text, attempt, coalesce(crashes, 0) FROM callboard.items WHERE job_id = %s ORDER BY item"
)

#: Why an item was given up.
TOLD = (
    "SELECT message FROM callboard.attempts WHERE job_id = %s AND NOT retried AND kind = 'crashed'"
    " AND error_type = 'WorkerDied'"
)
#: How many deaths were another's.
SPARED = (
    "SELECT count(*) FILTER (WHERE a.message LIKE '%% to blame')"
    " FROM callboard.items AS i JOIN callboard.attempts AS a USING (job_id, item)"
    " WHERE job_id = %s AND i.state = 'succeeded'"
)
#: The deaths of the first item, by attempt.
HISTORY = (
    "SELECT attempt, retried FROM callboard.attempts WHERE job_id = %s AND item = 0 AND kind = 'crashed' ORDER BY 1"
)


def neighbours(poison: dict[str, Any], slow: float) -> list[dict[str, Any]]:
    """The poison before items that do nothing, some of them for long enough to be known as running."""
    rest = ({"how": "none", "seconds": 0.02 if n % 3 else slow} for n in range(1, ITEMS))
    return [{"number": n, **item} for n, item in enumerate([poison, *rest])]


def died(scenario: Scenario, job: callboard.Job) -> Counter[int]:
    """How many runs of each item ended with their process."""
    rows = scenario.run_log.conn.execute(
        "SELECT item, count(*) FROM runs WHERE job = %s AND ended IS NULL GROUP BY item", (job.id,)
    )
    return Counter({row[0]: row[1] for row in rows})


def dead_letters(scenario: Scenario, job: callboard.Job) -> Counter[int]:
    """The items of a job that lie in the queue of the dead letters."""
    found: Counter[int] = Counter()
    with scenario.channel() as channel:
        while True:
            method, _, body = channel.basic_get("default.XQ")  # back in the queue when the channel is closed
            if method is None:
                return found
            its_job, _, item = json.loads(body)["message_id"].partition("-")
            found[int(item)] += its_job == str(job.id)


def prove(scenario: Scenario, job: callboard.Job) -> Counter[int]:
    """The first item of the job was stopped, with one dead letter, and no other was charged with its deaths; how many
    runs of each item ended with their process.
    """
    over = died(scenario, job)
    ((told,),) = scenario.sql(TOLD, job.id)
    assert "; 3 crashes are charged to it" in told
    (poison, *rest) = scenario.sql(STANDING, job.id)
    concerned = [item for item, _, attempt, _ in rest if attempt > 1]
    assert len(concerned) <= 8 * over.total()  # the threads that the dead had
    assert (poison[1], poison[3]) == ("failed", timings.MAX_CRASHES)
    for item, state, _, crashes in rest:
        assert (state, crashes) == ("succeeded", 0), item  # acquitted, if it was there
    assert wait_until(lambda: dead_letters(scenario, job) == Counter([0]), TIMEOUT), dead_letters(scenario, job)
    return over


def test_each_way_to_die_counts_and_the_third_time_is_the_last(scenario: Scenario) -> None:
    """Deaths when the item is known as running; each time in another way."""
    for _ in range(2):
        scenario.start_worker(threads=4, short_periods=3)
    job = scenario.submit("deadly", neighbours({"how": " ".join(WAYS), "known": True}, 0.9))
    with scenario.watch(job) as watcher:
        scenario.assert_completed(job, total=ITEMS, failed=1, watcher=watcher)
    over = prove(scenario, job)
    assert over[0] == timings.MAX_CRASHES == len(WAYS)
    assert tuple((scenario.run_log.folder / "ways").read_text().split()) == WAYS
    assert scenario.status(job)["crashes"] == timings.MAX_CRASHES
    ((spared,),) = scenario.sql(SPARED, job.id)
    print(f"{over.total()} runs died, {spared} deaths not theirs; {scenario.starts} starts")


def test_a_death_at_once_counts_too(scenario: Scenario) -> None:
    """No run has a row in `running` yet: the worker that comes after reads what this one was running."""
    scenario.start_worker()
    job = scenario.submit("deadly", neighbours({"how": "kill"}, 0.3))
    scenario.assert_completed(job, total=ITEMS, failed=1)
    assert prove(scenario, job)[0] == timings.MAX_CRASHES
    history = scenario.sql(HISTORY, job.id)
    assert history == [(1, True), (2, True), (3, False)]
