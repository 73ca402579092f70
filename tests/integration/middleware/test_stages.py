"""Jobs of stages on real workers: each stage is made from the results of the one before, and counted by itself."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import callboard
from callboard import Stage
from callboard.middleware.callbacks import stage_maker
from callboard.middleware.submission import submission
from callboard.sql.reads import queries
from callboard.sql.reads.job_filter import JobFilter
from callboard.sql.states import ITEM_STATES
from tests.support import makers as made
from tests.support.pipeline import Pipeline, running_pipeline
from tests.support.vhosts import Broker
from tests.support.workers import wait_until

NAMES = ("generate", "ask", "analyse", "score", "spreads", "number", "noted", "elsewhere", "heard")
TIMEOUT = 300.0
#: Items that are stored at a time, as the worker's.
CHUNK = 500


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "CHUNK_ITEMS", CHUNK)


@pytest.fixture(scope="module")
def pipeline(
    postgres_url: str, template: str, broker: Broker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pipeline]:
    """One worker with the actors and the functions; at the end a recount finds no drift."""
    folder = tmp_path_factory.mktemp("stages")
    modules = ["tests.support.stage_actors"]
    with running_pipeline(postgres_url, template, broker, NAMES, folder, modules) as found:
        yield found
        assert found.drift() == []


def status(job: callboard.Job) -> dict[str, Any]:
    """A job of stages; its counts are the sums of theirs, and add up."""
    found = job.status()
    assert sum(found[state] for state in ITEM_STATES) == found["total"]
    for name in (*ITEM_STATES, "total", "retries"):
        assert found[name] == sum(stage[name] for stage in found["stages"])
    return found


def ended(job: callboard.Job) -> dict[str, Any]:
    job.wait(TIMEOUT)
    return status(job)


def told(job: callboard.Job) -> list[tuple[str, str, int, int, int]]:
    """(name, state, total, succeeded, failed) of each stage."""
    return [(s["name"], s["state"], s["total"], s["succeeded"], s["failed"]) for s in status(job)["stages"]]


def audit(count: int = 45, **options: Any) -> callboard.Job:
    """The pipeline of an audit: generate queries, ask providers, analyse each answer, score them all."""
    return callboard.stages(
        "audit",
        [
            Stage("generate", items=[["Acme", count]]),
            Stage("ask", make=made.questions),
            Stage("analyse"),
            Stage("score", make=made.together),
        ],
        **options,
    )


def test_each_stage_is_made_from_the_results_of_the_one_before(pipeline: Pipeline) -> None:
    job = audit(metadata={"company": "Acme"})
    found = ended(job)
    assert found["state"] == "completed"
    assert told(job) == [
        ("generate", "completed", 1, 1, 0),
        ("ask", "completed", 135, 135, 0),
        ("analyse", "completed", 135, 135, 0),
        ("score", "completed", 1, 1, 0),
    ]
    assert (found["total"], found["progress"], found["sealed"], found["actor"]) == (272, 1.0, True, None)
    assert found["metadata"] == {"company": "Acme"}
    [scored] = job.items(stage=3)
    assert scored["result"] == {"answers": 135, "sum": 3 * sum(len(f"Acme {n}") for n in range(45))}


def test_async_callers_are_not_blocked(pipeline: Pipeline) -> None:
    async def ask() -> dict[str, Any]:
        job = await callboard.astages("async", [Stage("number", items=[1, 2]), Stage("number")])
        return await job.await_done(TIMEOUT)

    assert asyncio.run(ask())["succeeded"] == 4


def test_an_empty_stage_makes_an_empty_one(pipeline: Pipeline) -> None:
    job = callboard.stages("nothing", [Stage("number", items=[]), Stage("number"), Stage("number")])
    assert ended(job)["state"] == "completed"
    assert told(job) == [("number", "completed", 0, 0, 0)] * 3


class Column(list[int]):
    """Like a column of a data frame, it raises when it is asked for its truth value."""

    def __bool__(self) -> bool:
        raise ValueError("the truth value of a column is ambiguous")


def test_items_may_be_any_iterable(pipeline: Pipeline) -> None:
    assert ended(callboard.stages("column", [Stage("number", items=Column([1, 2]))]))["succeeded"] == 2


def test_a_child_belongs_to_the_stage_of_its_parent_and_the_stage_waits_for_it(pipeline: Pipeline) -> None:
    job = callboard.stages("children", [Stage("spreads", items=range(20)), Stage("number")])
    assert ended(job)["state"] == "completed"
    assert told(job) == [("spreads", "completed", 40, 40, 0), ("number", "completed", 20, 20, 0)]
    sent = [item["actor"] for item in job.items(stage=0)]
    assert (sent.count("spreads"), sent.count("noted")) == (20, 20)


def test_many_results_are_streamed_and_each_makes_one_item(pipeline: Pipeline) -> None:
    """More of them than are read, and than are stored, at once."""
    count = 600
    assert count > max(stage_maker.PAGE_ITEMS, CHUNK)
    job = callboard.stages("many", [Stage("number", items=range(count)), Stage("number", name="again", chunk=50)])
    assert ended(job)["state"] == "completed"
    assert told(job)[1] == ("again", "completed", count, count, 0)
    assert [item["args"][0] for item in job.items(stage=1)] == list(range(count))


# What fails ---------------------------------------------------------------------------------------------------------


def asked(on_failure: str, fails: Path, count: int = 5, **options: Any) -> callboard.Job:
    """A job whose second stage fails for a third as long as the file is there."""
    fails.touch()
    return callboard.stages(
        "asked",
        [
            Stage("generate", items=[[str(fails), count]]),
            Stage("ask", make=made.fragile, on_failure=on_failure),
            Stage("score", make=made.counted),
        ],
        **options,
    )


def test_failures_stop_the_stages_after_it_until_they_are_retried(pipeline: Pipeline, tmp_path: Path) -> None:
    job = asked("stop", tmp_path / "away")
    found = ended(job)
    assert (found["state"], found["reason"]) == ("failed", "stage 'ask': 5 of 15 items failed")
    assert told(job)[1:] == [("ask", "completed", 15, 10, 5), ("score", "cancelled", 0, 0, 0)]
    assert [error["type"] for error in job.errors()] == ["ConnectionError"]
    assert [(error["stage"], error["failed"]) for error in job.errors()] == [(1, 5)]
    (tmp_path / "away").unlink()
    assert job.retry() == 5
    found = ended(job)
    assert (found["state"], found["reason"], found["retries"]) == ("completed", None, 5)
    assert told(job)[1:] == [("ask", "completed", 15, 15, 0), ("score", "completed", 1, 1, 0)]
    assert next(job.items(stage=2))["result"] == {"answers": 15, "sum": 15}
    assert [action["action"] for action in job.actions()] == ["retry"]


def test_with_go_on_the_next_stage_is_made_without_the_failed_items(pipeline: Pipeline, tmp_path: Path) -> None:
    job = asked("go on", tmp_path / "away")
    found = ended(job)
    assert (found["state"], found["failed"]) == ("completed", 5)
    assert next(job.items(stage=2))["result"] == {"answers": 10, "sum": 10}
    (tmp_path / "away").unlink()
    assert job.retry() == 5
    assert ended(job)["state"] == "completed"
    # A stage that is made is not made again.
    assert told(job)[1:] == [("ask", "completed", 15, 15, 0), ("score", "completed", 1, 1, 0)]


def test_too_many_failures_stop_the_job_of_stages(pipeline: Pipeline, tmp_path: Path) -> None:
    job = asked("go on", tmp_path / "away", count=40, max_failures=3, concurrency=2)
    found = ended(job)
    assert found["state"] == "failed"
    assert found["reason"].startswith("stage 'ask': ")
    assert "max_failures is 3" in found["reason"]
    assert told(job)[2] == ("score", "cancelled", 0, 0, 0)


def test_a_stage_may_be_made_of_the_failed_items(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "away").touch()
    one = {"query": "q", "fails": str(tmp_path / "away")}
    job = callboard.stages(
        "failed",
        [
            Stage("ask", items=[{**one, "provider": who} for who in ("one", "two", "two")], on_failure="go on"),
            Stage("number", make=made.of_all),
        ],
    )
    assert ended(job)["state"] == "completed"
    assert [item["result"] for item in job.items(stage=1)] == [1, 2]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (made.broken, "RuntimeError: no idea how to go on"),
        (made.unfit, "BadItem: item 1 can't be written as a message"),
        (
            made.misnamed,
            (
                "BadItem: item 1 does not fit its actor: number has no argument 'valve' and needs 'value'; "
                "tests.support.makers:misnamed gave {'valve': 2}, and an item is a dict of its actor's arguments,"
            ),
        ),
        (made.nothing, "gave NoneType: it must yield items, or return a list of them"),
        ("tests.support.makers:absent", "AttributeError: module 'tests.support.makers' has no attribute"),
        ("tests.integration.absent:one", "ModuleNotFoundError: No module named 'tests.integration.absent'"),
    ],
)
def test_a_stage_that_cant_be_made_fails_the_job_with_its_traceback(make: Any, says: str, pipeline: Pipeline) -> None:
    job = callboard.stages(
        "broken", [Stage("number", items=range(6)), Stage("number", make=make, name="next"), Stage("number")]
    )
    found = ended(job)
    assert found["state"] == "failed"
    assert found["reason"].startswith("stage 'next': its items can't be made: ")
    assert says in found["reason"]
    assert [state for _, state, *_ in told(job)] == ["completed", "failed", "cancelled"]
    [failed] = job.actions()
    assert (failed["action"], failed["via"]) == ("fail", "worker")
    assert failed["detail"]["traceback"].startswith("Traceback")
    assert says.split(":", maxsplit=1)[0] in failed["detail"]["traceback"]


def test_a_stage_that_could_not_be_made_is_made_by_a_retry(pipeline: Pipeline) -> None:
    """The items that it made before are not made twice."""
    job = callboard.stages("again", [Stage("number", items=range(9)), Stage("number", make=made.stumbles)])
    found = ended(job)
    assert found["state"] == "failed"
    total = found["stages"][1]["total"]
    assert total == CHUNK
    job.retry()
    found = ended(job)
    assert found["state"] == "completed", found
    assert (found["stages"][1]["total"], found["stages"][1]["succeeded"]) == (520, 520)
    assert [item["args"][0] for item in job.items(stage=1)] == list(range(520))


def test_callbacks_are_called_for_the_job_and_not_for_its_stages(pipeline: Pipeline, tmp_path: Path) -> None:
    """The call describes the end, also if the job was opened again before the call."""
    job = asked("stop", tmp_path / "away", on_fail="heard", on_complete="heard")
    assert ended(job)["state"] == "failed"
    (tmp_path / "away").unlink()
    job.retry()
    assert ended(job)["state"] == "completed"
    assert wait_until(lambda: len(heard(pipeline)) == 2, TIMEOUT)
    first, second = heard(pipeline)
    assert (first["job"], first["state"], first["failed"], first["total"]) == (job.id, "failed", 5, 16)
    assert [stage["failed"] for stage in first["stages"]] == [0, 5, 0]
    assert (second["job"], second["state"], second["succeeded"], second["total"]) == (job.id, "completed", 17, 17)


def heard(pipeline: Pipeline) -> list[dict[str, Any]]:
    """The arguments of `heard`, in the order of the ends."""
    told = [item["args"][0] for item in pipeline.sent_items("heard")]
    return sorted(told, key=lambda one: str(one["finished_at"]))


# What is said to the whole ------------------------------------------------------------------------------------------


def waiting(gate: Path, count: int = 10, **options: Any) -> callboard.Job:
    """A job whose second stage waits for a file."""
    return callboard.stages(
        "waiting",
        [
            Stage("generate", items=[[str(gate), count]]),
            Stage("ask", make=made.gated),
            Stage("score", make=made.counted),
        ],
        **options,
    )


def in_hand(job: callboard.Job) -> None:
    assert wait_until(lambda: status(job)["running"] > 0, TIMEOUT), status(job)


def test_cancelled_within_a_stage(pipeline: Pipeline, tmp_path: Path) -> None:
    job = waiting(tmp_path / "gate", concurrency=4)
    in_hand(job)
    # A worker tells of its attempts that run first, and then of the step of their job.
    assert wait_until(lambda: (status(job)["step"] or "").startswith("asking "), TIMEOUT)
    said = job.cancel("wrong company")
    assert "cancelled" in (said["stopping"], said["state"])  # what was in hand may have ended by now
    found = ended(job)
    assert (found["state"], found["reason"]) == ("cancelled", "wrong company")
    assert [state for _, state, *_ in told(job)] == ["completed", "cancelled", "cancelled"]
    assert found["stages"][1]["succeeded"] <= 8
    assert [action["action"] for action in job.actions()] == ["cancel"]
    with pytest.raises(callboard.NotPossible, match="only a paused job"):
        job.resume()
    (tmp_path / "gate").touch()
    left = found["cancelled"]
    assert job.retry(["cancelled"]) == left > 0
    found = ended(job)
    assert (found["state"], found["succeeded"], found["total"]) == ("completed", 32, 32)
    assert next(job.items(stage=2))["result"] == {"answers": 30, "sum": 30}


def test_of_a_cancelled_job_only_the_chosen_items_run_again(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "away").touch()
    gate = tmp_path / "gate"
    items = [
        {"query": "q", "provider": "two", "fails": str(tmp_path / "away")},
        *({"query": "q", "provider": "one", "gate": str(gate)} for _ in range(50)),
    ]
    job = callboard.stages("chosen", [Stage("ask", items=items), Stage("score", make=made.counted)], concurrency=8)
    in_hand(job)
    assert wait_until(lambda: status(job)["failed"] == 1, TIMEOUT)
    job.cancel()
    succeeded = ended(job)["succeeded"]
    (tmp_path / "away").unlink()
    assert job.retry() == 1
    found = ended(job)
    assert (found["state"], found["stages"][0]["succeeded"]) == ("completed", succeeded + 1)
    assert found["cancelled"] == 50 - succeeded
    assert next(job.items(stage=1))["result"]["answers"] == succeeded + 1


def test_a_paused_job_starts_no_item_and_makes_no_stage(pipeline: Pipeline, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    job = waiting(gate, count=2)
    in_hand(job)
    assert job.pause()["state"] == "paused"
    gate.touch()
    assert wait_until(lambda: status(job)["running"] == 0, TIMEOUT)
    # What was in hand has ended; the stage after it is not made, if that was all.
    assert told(job)[2] == ("score", "paused", 0, 0, 0)
    assert job.resume()["state"] in ("running", "completed")
    assert ended(job)["state"] == "completed"
    assert [action["action"] for action in job.actions()] == ["resume", "pause"]


def test_paused_and_cancelled_while_a_stage_is_made(pipeline: Pipeline) -> None:
    job = callboard.stages("slowly", [Stage("number", items=range(60)), Stage("number", make=made.slowly)])
    assert wait_until(lambda: status(job)["stages"][1]["total"] > 0, TIMEOUT)
    job.pause()
    maker = "SELECT maker FROM callboard.jobs WHERE id = %s"
    second = status(job)["stages"][1]["job"]
    assert wait_until(lambda: pipeline.conn.execute(maker, (second,)).fetchone() == (None,), TIMEOUT)
    paused = status(job)["stages"][1]["total"]
    assert 0 < paused < 60
    job.resume()
    assert wait_until(lambda: paused < status(job)["stages"][1]["total"], TIMEOUT)
    job.cancel()
    found = ended(job)
    assert (found["state"], found["stages"][1]["sealed"]) == ("cancelled", False)
    assert wait_until(lambda: pipeline.conn.execute(maker, (second,)).fetchone() == (None,), TIMEOUT)
    assert job.retry(["cancelled"]) >= 0
    found = ended(job)
    assert (found["state"], told(job)[1][2:]) == ("completed", (60, 60, 0))
    assert [item["args"][0] for item in job.items(stage=1)] == list(range(60))


def test_cancelled_between_two_stages(pipeline: Pipeline) -> None:
    """No worker has the actor of the second stage: the job stands between them, and shows why."""
    job = callboard.stages("between", [Stage("number", items=[1]), Stage("elsewhere")])
    assert wait_until(lambda: told(job)[0][1] == "completed", TIMEOUT)
    assert status(job)["state"] == "running"
    assert 0.5 <= status(job)["progress"] < 1
    pipeline.conn.execute(
        "UPDATE callboard.jobs SET updated_at = now() - interval '1 min', finished_at = finished_at - interval '1 min'"
        " WHERE parent_id = %s",
        (job.id,),
    )
    assert status(job)["stalled"] == "stage 'elsewhere': no worker that is alive has the actor elsewhere"
    assert job.cancel()["state"] == "cancelled"
    assert [state for _, state, *_ in told(job)] == ["completed", "cancelled"]
    job.retry(["cancelled"])
    assert status(job)["state"] == "running"
    job.cancel()


def limits_of_stages(job: callboard.Job) -> list[dict[str, Any]]:
    return [callboard.get(stage["job"]).status()["limits"] for stage in status(job)["stages"]]


def test_limits_hold_for_every_stage_and_are_changed_for_all(pipeline: Pipeline, tmp_path: Path) -> None:
    job = waiting(tmp_path / "gate", concurrency=1, deadline="1h", concurrency_by="gate=2", keep="2d")
    in_hand(job)
    held = "SELECT keep, lane_by, lane_width FROM callboard.jobs WHERE %s IN (id, parent_id) ORDER BY id"
    kept = 2 * 86_400
    assert pipeline.conn.execute(held, (job.id,)).fetchall() == [(kept, None, None)] + [(None, "gate", 2)] * 3
    job.limit(concurrency_by=None)
    assert status(job)["queued"] + status(job)["running"] == 1
    limited = job.limit(concurrency=3, rate="1000/s")
    assert (limited["limits"]["concurrency"], limited["limits"]["rate"]) == (3, "1000/s")
    assert {one["concurrency"] for one in limits_of_stages(job)} == {3}
    assert len({one["deadline"] for one in limits_of_stages(job)}) == 1
    assert wait_until(lambda: status(job)["running"] == 3, TIMEOUT)
    callboard.get(status(job)["stages"][2]["job"]).limit(concurrency=7)
    job.limit(rate=None)
    assert [one["concurrency"] for one in limits_of_stages(job)] == [3, 3, 7]
    job.limit(deadline="0s")
    found = ended(job)
    assert found["state"] == "cancelled"
    assert found["reason"].startswith("stage 'ask': its deadline passed with ")
    assert found["stages"][2]["state"] == "cancelled"


def test_a_stage_by_itself_takes_only_limits_and_a_retry(pipeline: Pipeline, tmp_path: Path) -> None:
    job = asked("stop", tmp_path / "away")
    stages = ended(job)["stages"]
    one = callboard.get(stages[1]["job"])
    assert (one.status()["parent"], one.status()["stage"]) == (job.id, 1)
    for say in (one.cancel, one.pause, one.resume):
        with pytest.raises(callboard.NotPossible, match=f"is a stage of job {job.id}: apply this to job {job.id}"):
            say()
    with pytest.raises(callboard.NotPossible, match="each has its own items: retry them in the stage's job"):
        job.retry(items=[1])
    (tmp_path / "away").unlink()
    assert one.retry(items=[1]) == 1
    assert wait_until(lambda: status(job)["state"] == "failed" and status(job)["failed"] == 4, TIMEOUT)
    assert one.retry() == 4
    assert ended(job)["state"] == "completed"
    assert [action["detail"]["job"] for action in job.actions()] == [one.id, one.id]


def test_items_that_a_stage_is_partly_made_of_are_not_retried(pipeline: Pipeline) -> None:
    items = [{"query": "q", "provider": who, "fails": "/"} for who in ("one",) * 30 + ("two",)]
    job = callboard.stages("half", [Stage("ask", items=items, on_failure="go on"), Stage("number", make=made.slowly)])
    assert wait_until(lambda: 0 < status(job)["stages"][1]["total"] < 25, TIMEOUT)
    first = callboard.get(status(job)["stages"][0]["job"])
    with pytest.raises(callboard.NotPossible, match="is partly made from the results of job"):
        first.retry()
    assert job.retry() == 0
    assert ended(job)["state"] == "completed"
    assert first.retry() == 1
    ended(job)


# Keys and refusals --------------------------------------------------------------------------------------------------


def breaks(count: int) -> Iterator[int]:
    yield from range(count)
    raise OSError("the disk is gone")


def test_the_same_key_gives_the_same_job_and_its_submission_goes_on(pipeline: Pipeline) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        callboard.stages("keyed", [Stage("number", items=breaks(600)), Stage("number")], key="k")
    job = callboard.stages("keyed", [Stage("number", items=range(700)), Stage("number")], key="k")
    assert job.status()["key"] == "k"
    assert ended(job)["state"] == "completed"
    assert [total for _, _, total, *_ in told(job)] == [700, 700]
    assert [item["args"][0] for item in job.items(stage=0)] == list(range(700))
    assert callboard.stages("keyed", [Stage("number", items=range(700)), Stage("number")], key="k").id == job.id
    with pytest.raises(callboard.KeyInUse, match=rf"that of job {job.id}, .* other options \(stages\)"):
        callboard.stages("keyed", [Stage("number", items=range(700))], key="k")
    with pytest.raises(callboard.KeyInUse, match="other items"):
        callboard.stages("keyed", [Stage("number", items=range(1, 701)), Stage("number")], key="k")
    with pytest.raises(callboard.KeyInUse, match="other options"):
        callboard.submit("number", [1], key="k")
    plain = callboard.submit("number", [1], key="plain")
    with pytest.raises(callboard.KeyInUse, match=f"that of job {plain.id}, .* other options"):
        callboard.stages("plain", [Stage("number", items=[1])], key="plain")
    with pytest.raises(callboard.KeyInUse), callboard.job("keyed", key="k"):
        pass
    assert status(job)["state"] == "completed"
    again = callboard.stages("keyed", [Stage("number", items=[1])], key="k", key_reuse=True)
    assert again.id != job.id
    assert (status(job)["key"], status(again)["key"]) == (None, "k")
    assert ended(again)["state"] == "completed"


def test_without_a_key_a_submission_that_breaks_off_fails_the_job(pipeline: Pipeline) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        callboard.stages("broken off", [Stage("number", items=breaks(3)), Stage("number")])
    [found] = queries.run(pipeline.conn, queries.jobs(JobFilter(names=("broken off",))))[0]
    assert found["state"] == "failed"
    assert found["reason"].startswith("stage 'number': its submission broke off at input 0: OSError")


def test_lists_show_the_job_with_its_stages_in_it(pipeline: Pipeline) -> None:
    job = callboard.stages("listed", [Stage("number", items=[1]), Stage("score", make=made.counted)])
    found = ended(job)
    page, _ = queries.run(pipeline.conn, queries.jobs(limit=500))
    assert [one for one in page if one["id"] == job.id or one["parent"] == job.id] == [found]
    for actor in ("number", "score"):
        assert job.id in [
            one["id"] for one in queries.run(pipeline.conn, queries.jobs(JobFilter(actor=actor), limit=500))[0]
        ]
    assert queries.run(pipeline.conn, queries.verify(job.id))["jobs"] == 3
