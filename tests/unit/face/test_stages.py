"""Stages that are refused, what is derived of a job of stages, and the chunks in which items are stored."""

import functools
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import callboard
from callboard import Results, Stage
from callboard.middleware.callbacks import stage_maker
from callboard.middleware.submission import submission
from callboard.middleware.submission.item_encoding import encode_all
from callboard.sql.reads import job_view, staged_job_view
from callboard.sql.states import ITEM_STATES, JOB_FINAL, JOB_STATES
from callboard.stages import path
from tests.unit.sql.test_job_view import STUCK, WAITING, rows


def make(results: Results) -> Iterator[int]:
    """A function that a worker can import."""
    yield from ()


async def later(results: Results) -> list[int]:
    return []


async def streamed(results: Results) -> Any:
    yield 1


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def inner(results: Results) -> Any:
        return function(results)

    return inner


@decorated
def wrapped(results: Results) -> list[int]:
    return []


class Maker:
    """A class with a function in it."""

    @staticmethod
    def make(results: Results) -> list[int]:
        return [one.item for one in results]

    def bound(self, results: Results) -> list[int]:
        return []


renamed = make


@dramatiq.actor(broker=StubBroker())
def actor(results: Any) -> None:
    """An actor that makes."""


class Making(dramatiq.GenericActor):
    """What actors that are classes have in common."""

    class Meta:
        abstract = True
        actor = functools.partial(dramatiq.actor, broker=StubBroker())

    def perform(self, results: Any) -> list[int]:
        return [one.item for one in results]


class Made(Making):
    """An actor that makes, as a class."""


class MadeLater(Making):
    async def perform(self, results: Any) -> list[int]:  # type: ignore[override]
        return []


HERE = __name__


def test_a_function_is_stored_by_its_name() -> None:
    assert path(make) == f"{HERE}:make"
    assert path(wrapped) == f"{HERE}:wrapped"
    assert path(Maker.make) == f"{HERE}:Maker.make"
    assert path(actor) == f"{HERE}:actor"
    assert path(Made) == f"{HERE}:Made"
    assert path(renamed) == f"{HERE}:make"
    assert path("shop.stages:make") == "shop.stages:make"


def nested() -> Any:
    def inner(results: Results) -> list[int]:
        return []

    return inner


def main() -> Any:
    def script(results: Results) -> list[int]:
        return []

    script.__module__, script.__qualname__ = "__main__", "script"
    return script


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda results: results, "<lambda> can't make a stage, because it is without a name of its own in a module"),
        (nested(), "inner can't make a stage, because it is without a name of its own in a module"),
        (main(), "script can't make a stage, because it is in the program's main module"),
        (functools.partial(make), r"functools.partial\(.*\) can't make a stage"),
        (Maker().bound, "Maker.bound can't make a stage, because .* has another object with that name"),
        (later, "later can't make a stage, because it is async"),
        (MadeLater, "MadeLater can't make a stage, because it is async"),
        (streamed, "streamed can't make a stage, because it is async"),
        (3, "3 can't make a stage"),
        ("make", "its path as 'module:name', not 'make'"),
        ("shop:", "its path as 'module:name'"),
        ("shop.stages:<lambda>", "its path as 'module:name'"),
    ],
)
def test_a_function_that_no_worker_could_import_is_refused(given: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Stage("work", make=given)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([], "a list of at least one callboard.Stage"),
        (["work"], "a list of at least one callboard.Stage"),
        ((Stage(name, items=[]) for name in ["work"]), "a list of at least one callboard.Stage"),
        (Stage("work", items=[]), "a list of at least one callboard.Stage"),
        ([Stage("work")], "the first stage must have items"),
        ([Stage("work", items=[], make=make)], "the first stage must have items, and no make"),
        ([Stage("work", items=[]), Stage("play", items=[])], "only the first stage may have items; those of 'play'"),
    ],
)
def test_stages_that_can_not_follow_one_another_are_refused(stages: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        callboard.stages("a job", stages)


def test_a_stage_stops_or_goes_on() -> None:
    with pytest.raises(ValueError, match="must be 'stop' or 'go on', not 'ignore'"):
        Stage("work", items=[], on_failure="ignore")


def test_a_message_carries_a_number_of_items() -> None:
    with pytest.raises(ValueError, match="chunk must be a whole number from 1"):
        Stage("work", items=[], chunk=0)


def test_options_are_refused_before_anything_is_stored() -> None:
    with pytest.raises(ValueError, match="delay and at say the same"):
        callboard.stages("a job", [Stage("work", items=[])], delay="5m", at="10m")


# Made ---------------------------------------------------------------------------------------------------------------


def page(states: Any, after: int) -> list[Any]:
    """A stage of 250 items, of which every third failed."""
    found = [
        (n, b'{"args":[%d],"kwargs":{}}' % n, "failed" if n % 3 == 0 else "succeeded", "null", None) for n in range(250)
    ]
    return [row for row in found if row[0] > after and row[2] in states][: stage_maker.PAGE_ITEMS]


def test_results_are_of_the_items_that_succeeded_unless_other_states_are_named() -> None:
    results = Results(page)
    assert [one.item for one in results] == [n for n in range(250) if n % 3]
    assert [one.args for one in results.of("failed")] == [(n,) for n in range(0, 250, 3)]
    assert [one.item for one in results.of("failed", "succeeded")] == list(range(250))
    with pytest.raises(ValueError, match="not 'done'"):
        results.of("done")


def test_a_result_that_is_not_kept_is_no_item_that_may_be_missing() -> None:
    def page(states: Any, after: int) -> list[Any]:
        return [] if after > 0 else [(7, b'{"args":[],"kwargs":{}}', "succeeded", None, "it is too large")]

    assert [(one.result, one.unkept) for one in Results(page)] == [(None, "it is too large")]
    with pytest.raises(ValueError, match="the result of item 7 of the stage before is not kept: it is too large"):
        list(stage_maker._as_items(Results(page)))


def stored(items: Iterable[Any], consumed: int = 0, **options: Any) -> list[tuple[int, int]]:
    """Each chunk's first number and size."""
    chunks: list[tuple[int, int]] = []
    rows = encode_all(items, stored=consumed)
    submission.store_rows(rows, consumed, lambda start, rows: chunks.append((start, len(rows))), **options)
    return chunks


def test_items_are_stored_in_chunks_after_those_that_are_stored() -> None:
    many = submission.CHUNK_ITEMS
    assert stored(range(2 * many + 1)) == [(0, many), (many, many), (2 * many, 1)]
    assert stored(range(10), 7) == [(7, 3)]
    assert stored(range(10), 10) == []
    assert stored(()) == []


def test_a_chunk_of_large_items_has_few_of_them() -> None:
    large = submission.CHUNK_BYTES // 5
    sizes = [size for _, size in stored("x" * large for _ in range(12))]
    assert sizes == [5, 5, 2]


def test_items_that_come_slowly_do_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(submission, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))
    assert stored(range(3), chunk_seconds=1.0) == [(0, 1), (1, 1), (2, 1)]


# Told ---------------------------------------------------------------------------------------------------------------


@st.composite
def families(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A job of stages and its stages, in every state."""
    count = draw(st.integers(1, 4))
    parent = {**draw(rows()), "id": 1, "stages": count, "total": 0}
    parent.update(dict.fromkeys(("published", "retrying", "succeeded", "failed", "skipped", "cancelled", "in_turn"), 0))
    made = [
        {**draw(rows()), "id": 2 + n, "parent_id": 1, "stage": n, "on_failure": "stop", "within": True}
        for n in range(count)
    ]
    return [parent, *draw(st.permutations(made))]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine draws slowly
@given(families())
def test_the_parts_of_a_job_of_stages_are_its_total_and_its_stages(found: list[dict[str, Any]]) -> None:
    [job] = staged_job_view.jobs(found)
    assert sum(job[state] for state in ITEM_STATES) == job["total"] == sum(row["total"] for row in found)
    assert [stage["stage"] for stage in job["stages"]] == list(range(len(found) - 1))
    for stage in job["stages"]:
        assert sum(stage[state] for state in ITEM_STATES) == stage["total"]
    assert 0 <= job["progress"] <= 1
    assert job["state"] in JOB_STATES
    if job["state"] not in JOB_FINAL:
        assert job["progress"] < 1
    if any(stage["progress"] < 1 for stage in job["stages"]):
        assert job["progress"] < 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"maker": 7}, "the worker that made its items died; another will go on"),
        ({"alive": 0}, "no worker is alive"),
        ({"able": 0}, "no worker that is alive has the actor work"),
        ({}, "its items are still to be made, and nothing has moved for 40 s"),
    ],
)
def test_a_stage_that_is_not_made_has_a_reason(row: dict[str, Any], reason: str | None) -> None:
    unmade = {**STUCK, "sealed": False, "stage": 1, **row}
    assert job_view.stalled(unmade, {**WAITING, "queued": 0}) == (reason, None)
