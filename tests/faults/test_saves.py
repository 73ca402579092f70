"""Saved rows are there once, if and only if their item succeeded: workers die at each point, messages come twice."""

from typing import Any

import pytest

import callboard
from tests.faults.rig.scenario import Scenario, fate
from tests.faults.test_duplicates import put, taken

#: When the actor has returned, when its statements ran, in the commit, and after it; each among other outcomes.
PLAN = ("outcome:3", "saved:3", "flush:4", "settle:3", "ack:3", "saved:5", "settle:6", "saved:9")
ITEMS = 400
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

    def submit() -> callboard.Job:
        return scenario.submit("saves", (item(number) for number in range(ITEMS)))

    job = submit()
    if copies > 1:
        bodies = taken(scenario, job, ITEMS)
        put(scenario, [body for body in bodies for _ in range(copies)])
    scenario.start_worker(short_periods=5, kill_points=PLAN)
    jobs = scenario.all_die(PLAN, job, submit)
    of_a_kind = ITEMS // 20
    for one in jobs:
        scenario.assert_completed(one, total=ITEMS, failed=2 * of_a_kind, skipped=of_a_kind, timeout=600)
    died = scenario.deaths()
    assert [death.point for death in died] == [point.partition(":")[0] for point in PLAN]
    assert all(death.keys for death in died)
    succeeded = "SELECT item FROM callboard.items WHERE job_id = %s AND state = 'succeeded' ORDER BY 1"
    saved = "SELECT item FROM saved WHERE job = %s ORDER BY 1"
    for one in jobs:
        assert scenario.sql(saved, one.id) == scenario.sql(succeeded, one.id)
        refused = [e for e in one.errors() if e["type"].endswith("CheckViolation")]
        assert sum(e["failed"] for e in refused) == of_a_kind
    repeated = sum(scenario.run_log.repeated(one.id) for one in jobs)
    print(f"{len(died)} deaths, {repeated} runs of an attempt begun before")
