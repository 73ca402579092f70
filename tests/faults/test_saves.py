"""Saved rows are there once, if and only if their item succeeded: workers die at each point, messages come twice."""

from typing import Any

import pytest

from tests.faults.rig.scenario import Scenario, fate
from tests.faults.test_duplicates import put, taken

#: When the actor has returned, when its statements ran, in the commit, and after it; each among other outcomes.
PLAN = ("outcome:3", "saved:3", "flush:4", "settle:3", "ack:3", "saved:5", "settle:6", "saved:9")
ITEMS = 800
TABLE = "CREATE TABLE saved (job bigint, item int, attempt int, fate text CHECK (fate <> 'refused'))"


def item(number: int) -> dict[str, Any]:
    ends = "refused" if number % 20 == 3 else fate(number)
    return {"number": number, "fate": ends, "seconds": 0.3 if number % 40 == 7 else 0.005}


@pytest.mark.parametrize("copies", [1, 2], ids=["as they come", "each message twice"])
def test_it_is_saved_once_if_and_only_if_it_succeeded(
    copies: int, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLBOARD_QUEUE_DEPTH", "1000")
    scenario.sql(TABLE)
    job = scenario.submit("saves", (item(number) for number in range(ITEMS)))
    if copies > 1:
        bodies = taken(scenario, job, ITEMS)
        put(scenario, [body for body in bodies for _ in range(copies)])
    scenario.start_worker(short_periods=5, kill_points=PLAN)
    scenario.wait_for(job, lambda _: len(scenario.deaths()) == len(PLAN), timeout=600)
    of_a_kind = ITEMS // 20
    scenario.assert_completed(job, total=ITEMS, failed=2 * of_a_kind, skipped=of_a_kind, timeout=600)
    died = scenario.deaths()
    assert [death.point for death in died] == [point.partition(":")[0] for point in PLAN]
    assert all(death.keys for death in died)
    succeeded = "SELECT item FROM callboard.items WHERE job_id = %s AND state = 'succeeded' ORDER BY 1"
    saved = "SELECT item FROM saved WHERE job = %s ORDER BY 1"
    assert scenario.sql(saved, job.id) == scenario.sql(succeeded, job.id)
    refused = [e for e in job.errors() if e["type"].endswith("CheckViolation")]
    assert sum(e["failed"] for e in refused) == of_a_kind
    print(f"{len(died)} deaths, {scenario.run_log.repeated(job.id)} runs of an attempt begun before")
