"""A worker gives values that a database can't store. Each item ends with a clear error, and no other waits for it."""

from typing import Any

from callboard.sql.pool import connect
from callboard.sql.reads import queries
from tests.faults.rig.scenario import ACTORS, Scenario

UNKEPT = {
    "nan": "Out of range float values are not JSON compliant",
    "infinite": "Out of range float values are not JSON compliant",
    "huge": "300,002 bytes as JSON, and 262,144 are allowed (CALLBOARD_RESULT_LIMIT)",
    "object": "Encoding objects of type object is unsupported",
    "deep": "recursion",
}
SAID = {
    "odd error": "a\\x00b\\ud800",
    "huge error": "yyyy",
    "mute error": "(no text: ",
    "leaving error": "(no text: SystemExit in __str__)",
    "far retry": "out of range",
    "child": "must be texts without control characters",
    "skip": "a\\x00b\\ud800",
}
KINDS = [*UNKEPT, *SAID, "half", "nul", "step"]


def attempts(scenario: Scenario, job: int, item: int) -> list[dict[str, Any]]:
    """The attempts of an item, as the API describes them."""
    with connect(scenario.database_url) as conn:
        return queries.run(conn, queries.attempts(job, item))


def test_each_odd_item_ends_with_a_clear_word_and_the_others_go_on(scenario: Scenario) -> None:
    worker = scenario.start_worker(modules=(ACTORS, "tests.faults.rig.odd_values"))
    kinds = [kind for kind in KINDS for kind in (kind, *["plain"] * 9)] * 2
    job = scenario.submit("odd", kinds)
    with scenario.watch(job) as watcher:
        failed = [n for n, kind in enumerate(kinds) if kind in SAID and kind != "skip"]
        scenario.assert_completed(job, total=len(kinds), failed=len(failed), skipped=2, watcher=watcher)
    for n, kind in enumerate(kinds):
        if kind in SAID:
            assert SAID[kind] in attempts(scenario, job.id, n)[-1]["message"], kind
    items = list(job.items(state="succeeded"))
    assert {kinds[i["item"]] for i in items if i["result_unkept"]} == set(UNKEPT)
    for item in items:
        assert UNKEPT.get(kinds[item["item"]], "") in (item["result_unkept"] or ""), item
    assert job.status()["unkept"] == 2 * len(UNKEPT)
    for text in ("can't go on", "can't be written to", "can't be recorded at all", "Unexpected failure in"):
        assert text not in worker.output
    assert worker.process.running()
    assert scenario.sql("SELECT trouble FROM callboard.workers") == [(None,)]


def test_the_limit_of_results_is_set_by_a_variable(scenario: Scenario) -> None:
    scenario.start_worker(modules=(ACTORS, "tests.faults.rig.odd_values"), env={"CALLBOARD_RESULT_LIMIT": "400000"})
    job = scenario.submit("odd", ["huge"])
    scenario.assert_completed(job, total=1)
    assert len(next(job.items())["result"]) == 300_000
