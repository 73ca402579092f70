"""Limits on running jobs, by the actors' own table of runs: when each began and ended."""

import time

import callboard
from tests.faults.rig.scenario import Scenario, gated
from tests.support.timer import Timer


def spans(scenario: Scenario, job: callboard.Job) -> list[tuple[float, float]]:
    """When each run of a job began and ended, in order of their beginning; what is in hand has not ended yet."""
    return [
        (float(row[0]), float(row[1]))
        for row in scenario.run_log.conn.execute(
            "SELECT extract(epoch FROM began), extract(epoch FROM coalesce(ended, 'infinity'))"
            " FROM runs WHERE job = %s ORDER BY began",
            (job.id,),
        )
    ]


def at_once(runs: list[tuple[float, float]]) -> int:
    """The most runs at the same moment."""
    moments = sorted([(began, 1) for began, _ in runs] + [(ended, -1) for _, ended in runs])
    most = now = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def test_no_more_items_are_in_hand_than_may_be_over_all_workers(scenario: Scenario) -> None:
    scenario.start_worker(processes=2)
    timer, gate = Timer(), scenario.folder / "gate"
    items = ({"number": n, "seconds": 0.02, "fate": "succeed" if n % 5 else "retry"} for n in range(150))
    job = scenario.submit("work", gated(items, gate, 0), concurrency=3)
    # As many as may be at once, however slowly they start; the other job takes all threads that are left.
    scenario.wait_for(job, lambda status: status["running"] == 3)
    other = scenario.submit("work", gated(({"number": n, "seconds": 0.02} for n in range(300)), gate, 0))
    scenario.wait_for(other, lambda status: status["running"] > 3)
    gate.touch()
    opened = time.time()
    scenario.assert_completed(job, total=150, retries=30)
    scenario.assert_completed(other, total=300)
    assert at_once(spans(scenario, job)) == 3
    assert at_once(spans(scenario, other)) > 3
    # Room is filled when an item ends, not at the publisher's next look.
    assert spans(scenario, job)[-1][1] - opened < 180 * 0.02 / 3 + 180 * 0.1 + timer.stalled


def test_no_more_items_start_than_the_rate_allows_and_it_is_changed_on_the_run(scenario: Scenario) -> None:
    scenario.start_worker(processes=2)
    job = scenario.submit("work", ({"number": n} for n in range(120)), rate="20/s")
    scenario.wait_for(job, lambda status: status["succeeded"] >= 60)
    ((created,),) = scenario.sql(
        "SELECT extract(epoch FROM created_at)::float8 FROM callboard.jobs WHERE id = %s", job.id
    )
    # None begins before its time; after that a worker that stood still may begin many at once.
    begins = [began for began, _ in spans(scenario, job)]
    assert all(began - created >= (n - 20) / 20 for n, began in enumerate(begins)), begins
    assert job.limit(rate=None)["limits"] == {}
    scenario.assert_completed(job, total=120)


def test_a_job_past_its_failures_starts_nothing_more(scenario: Scenario) -> None:
    scenario.start_worker(processes=2)
    gate = scenario.folder / "gate"  # never there: they wait for the end of their job
    items = ({"number": n, "fate": "once"} for n in range(600))
    job = scenario.submit("work", gated(items, gate, 100), max_failures="5% of 40")
    scenario.wait_for(job, lambda status: status["state"] == "failed")
    ended = scenario.status(job)
    assert ended["reason"].endswith("max_failures is 5% of 40")
    assert 40 <= ended["failed"] <= 100 + 2 * 16
    assert len(spans(scenario, job)) == ended["failed"]
    assert ended["failed"] + ended["cancelled"] == 600


def test_a_job_with_a_time_starts_then_and_one_that_is_late_is_cancelled(scenario: Scenario) -> None:
    scenario.start_worker()
    gate = scenario.folder / "gate"  # never there: they wait for the end of their job
    said, timer = time.time(), Timer()
    items = gated(({"number": n} for n in range(200)), gate, 20)
    job = scenario.submit("work", items, delay="3s", deadline="1h")
    times = "SELECT extract(epoch FROM not_before)::float8, extract(epoch FROM deadline)::float8 FROM callboard.jobs"
    ((starts, ends),) = scenario.sql(times)
    assert starts - said >= 3
    assert ends - said >= 3600
    scenario.wait_at_gate(job, 20, threads=8)
    scenario.sql("UPDATE callboard.jobs SET deadline = now()")  # the hour is over
    ((_, ends),) = scenario.sql(times)
    scenario.wait_for(job, lambda status: status["state"] == "cancelled")
    runs, ended = spans(scenario, job), scenario.status(job)
    assert 0 <= runs[0][0] - starts < 60 + timer.stalled
    ((finished,),) = scenario.sql("SELECT extract(epoch FROM finished_at)::float8 FROM callboard.jobs")
    assert 0 <= finished - ends < 60 + timer.stalled
    assert ended["reason"].startswith("its deadline passed")
    assert 0 < ended["succeeded"] == len(runs) <= 20 + 2 * 8
    assert ended["succeeded"] + ended["cancelled"] == 200


def test_a_small_job_is_not_kept_waiting_by_a_large_one(scenario: Scenario) -> None:
    """Jobs are served in turn: before it begin what lay in the queue, and about as many as it has."""
    scenario.start_worker(processes=2)
    there, never = scenario.folder / "gate", scenario.folder / "never"
    items = gated(({"number": n, "seconds": 0.02} for n in range(3_000)), there, 200)
    large = scenario.submit("work", gated(items, never, 2_900), tenant="a")
    scenario.wait_at_gate(large, 200, threads=16)
    small = scenario.submit("work", ({"number": n, "seconds": 0.02} for n in range(100)), tenant="b")
    ((opened,),) = scenario.run_log.conn.execute("SELECT clock_timestamp()").fetchall()
    there.touch()
    scenario.assert_completed(small, total=100)
    # Until two fifths had begun: the others may lie in a process that stands still, while the other process goes on.
    ((others,),) = scenario.run_log.conn.execute(
        "SELECT count(*) FROM runs WHERE job = %s AND began BETWEEN %s"
        " AND (SELECT percentile_disc(0.4) WITHIN GROUP (ORDER BY began) FROM runs WHERE job = %s)",
        (large.id, opened, small.id),
    )
    print(f"{others} of the large one began meanwhile")
    assert others < 2_000
    assert scenario.status(large)["finished_at"] is None
    large.cancel()
    scenario.wait_for(large, lambda status: status["finished_at"] is not None)
