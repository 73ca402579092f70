"""What is derived from a job's row: the parts always add up, nothing is done before it is."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.sql import json_values
from callboard.sql.reads import job_view
from callboard.sql.states import ITEM_STATES, JOB_FINAL, JOB_STATES

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
TIMES = st.floats(0, 1e9).map(lambda seconds: NOW - timedelta(seconds=seconds))


@st.composite
def rows(draw: st.DrawFn) -> dict[str, Any]:
    """Every row that the CHECKs of `jobs` let in, with whatever `running`, samples and workers say."""
    state = draw(st.sampled_from(JOB_STATES))
    settled = {name: draw(st.integers(0, 10**9)) for name in ("succeeded", "failed", "skipped", "cancelled")}
    stopping = state not in JOB_FINAL and draw(st.booleans())
    retrying = 0 if state == "completed" else draw(st.integers(0, 10**9))
    waiting = 0 if state == "completed" else draw(st.integers(0, 10**9))
    total = sum(settled.values()) + retrying + waiting
    quiet = draw(st.booleans())
    return {
        **dict.fromkeys(("key", "actor", "reason", "step", "created_by"), None),
        "id": 1, "name": "n", "tenant": "", "limits": {"rate": "1/m"}, "metadata": {}, "state": state, "total": total,
        "sealed": state == "completed" or draw(st.booleans()), "standing": draw(st.booleans()),
        "published": draw(st.integers(0, total)), "retrying": retrying, **settled, "retries": 0, "crashes": 0,
        "unkept": 0,
        "stopping": draw(st.sampled_from(("failed", "cancelled"))) if stopping else None,
        "in_turn": draw(st.integers(0, 10**9)),
        "hung": None, "in_hand": draw(st.integers(0, 10**4)), "read_at": NOW, "created_at": draw(TIMES),
        "updated_at": draw(TIMES), "moved_at": draw(TIMES), "control_at": draw(st.none() | TIMES),
        "started_at": None if state == "pending" else draw(TIMES),
        "finished_at": draw(TIMES) if state in JOB_FINAL else None,
        "sampled_at": draw(st.none() | TIMES), "sampled_final": draw(st.integers(0, 10**9)),
        "in_part": draw(st.floats(0, 1e4)), "sampled_in_part": draw(st.floats(0, 1e4)),
        "alive": draw(st.integers(0, 3)) if quiet else None, "able": draw(st.integers(0, 3)),
        "taken": draw(st.none() | st.booleans()), "queue": "default",
        "due_at": draw(st.none() | TIMES),
        **dict.fromkeys(("not_before", "next_start"), draw(st.none() | TIMES)),
        "trouble": draw(st.none() | st.just("blocked")), "elsewhere": draw(st.integers(0, 3)),
        "missing": draw(st.none() | st.just("mail")),
        "holds": None, "submitting": draw(st.none() | st.booleans()), "held": draw(st.booleans()),
        "consumed": draw(st.integers(0, 10**9)),
        **dict.fromkeys(("stages", "parent_id", "stage", "makes", "on_failure", "maker")), "within": False,
    }  # fmt: skip


@given(rows())
def test_the_parts_of_a_job_are_its_total(row: dict[str, Any]) -> None:
    job = job_view.job(row)
    assert sum(job[state] for state in ITEM_STATES) == job["total"]
    assert all(job[state] >= 0 for state in ITEM_STATES)


@given(rows())
def test_what_a_stopped_job_is_over_with_is_cancelled(row: dict[str, Any]) -> None:
    job = job_view.job(row)
    if job["state"] in JOB_FINAL:
        assert not any(job[state] for state in ("pending", "queued", "running", "retrying"))
    elif job["stopping"]:
        assert not any(job[state] for state in ("pending", "queued", "retrying"))
        assert job["running"] <= row["in_hand"]
    else:
        assert job["cancelled"] == row["cancelled"]
        assert job["retrying"] == row["retrying"]


@given(rows())
def test_progress_is_one_only_when_all_is_done(row: dict[str, Any]) -> None:
    job = job_view.job(row)
    final = job["succeeded"] + job["failed"] + job["skipped"] + row["cancelled"]
    assert 0 <= job["progress"] <= 1
    if job["total"]:
        assert (job["progress"] == 1) == (final == job["total"])
    else:
        assert job["progress"] == (1 if job["state"] == "completed" else 0)


@given(rows())
def test_the_rate_is_a_number_and_the_estimate_lies_ahead(row: dict[str, Any]) -> None:
    job = job_view.job(row)
    assert job["rate"] is None or (math.isfinite(job["rate"]) and job["rate"] >= 0)
    if job["eta"]:
        assert (job["state"], job["stopping"]) == ("running", None)
        assert job["eta"] >= (json_values.iso(NOW) or "")


@given(rows(), st.floats(0, 4.9))
def test_two_readings_with_nothing_new_are_the_same(row: dict[str, Any], later: float) -> None:
    """But for an estimate that has passed."""
    first, second = (
        job_view.job({**row, "read_at": row["updated_at"] + timedelta(seconds=seconds)}) for seconds in (0, later)
    )
    assert (first["rate"], first["progress"]) == (second["rate"], second["progress"])
    if first["eta"] and first["eta"] > (json_values.iso(row["updated_at"] + timedelta(seconds=7)) or ""):
        assert first["eta"] == second["eta"]


def test_rate_and_estimate_follow_in_steps_when_nothing_moves() -> None:
    row: dict[str, Any] = {
        "started_at": NOW, "finished_at": None, "sampled_at": None, "sampled_final": None, "sampled_in_part": None,
        "control_at": None, "updated_at": NOW + timedelta(seconds=100), "succeeded": 1_000, "failed": 0, "skipped": 0,
        "cancelled": 0, "total": 2_000, "in_part": 0.0,
    }  # fmt: skip
    rates = [
        job_view._rate({**row, "read_at": row["updated_at"] + timedelta(seconds=seconds)})
        for seconds in (0, 4.9, 5, 9.9, 10)
    ]
    assert rates == [10, 10, 9.52, 9.52, 9.09]


STUCK: dict[str, Any] = {
    "alive": 1, "able": 1, "trouble": None, "due_at": None, "sealed": True, "standing": False,
    "actor": "work", "holds": None, "submitting": None, "held": False, "consumed": 500,
    "key": None, "stage": None, "maker": None,
    "read_at": NOW, "moved_at": NOW - timedelta(seconds=42), "elsewhere": 0, "not_before": None, "next_start": None,
    "limits": {"rate": "1/m"}, "missing": None, "queue": "default", "taken": True,
}  # fmt: skip


def test_a_job_is_open_that_waits_for_items_and_is_not_submitted() -> None:
    row = STUCK | {"sealed": False, "stages": None, "state": "paused", "stopping": None}
    assert job_view._is_open(row)
    others: list[dict[str, Any]] = [
        {"sealed": True}, {"submitting": True}, {"submitting": False}, {"standing": True}, {"stages": 2}, {"stage": 1},
        {"stopping": "cancelled"}, {"state": "cancelled"},
    ]  # fmt: skip
    assert not any(job_view._is_open(row | other) for other in others)


WAITING = {**dict.fromkeys(ITEM_STATES, 0), "queued": 3}


@pytest.mark.parametrize(
    ("row", "parts", "reason"),
    [
        ({}, {}, "nothing has moved for 40 s"),
        ({"alive": None}, {}, None),
        ({"alive": 0, "able": 0}, {}, "no worker is alive"),
        ({"able": 0}, {}, "no worker that is alive has the actor work"),
        ({"taken": False}, {}, "no worker that is alive has the actor work on the queue default"),
        ({"due_at": NOW + timedelta(minutes=1)}, {}, "nothing has moved for 40 s"),
        (
            {"due_at": NOW + timedelta(minutes=1)},
            {"queued": 0, "retrying": 1},
            "waiting for a retry at 2026-11-22T12:01:00.000Z",
        ),
        (
            {"due_at": NOW + timedelta(minutes=1)},
            {"queued": 0, "pending": 1},
            "waiting for its time at 2026-11-22T12:01:00.000Z",
        ),
        (
            {"not_before": NOW + timedelta(minutes=1), "due_at": NOW},
            {"queued": 0, "pending": 1},
            "waiting for its time at 2026-11-22T12:01:00.000Z",
        ),
        (
            {"not_before": NOW - timedelta(minutes=1), "next_start": NOW + timedelta(minutes=1)},
            {"queued": 0, "pending": 1},
            "its rate is 1/m: the next item starts at 2026-11-22T12:01:00.000Z",
        ),
        (
            {
                "holds": {
                    "*": {"until": "2026-11-22T12:01:00+00:00", "reason": "429"},
                    "1": {"until": "2026-11-22T12:00:00+00:00", "reason": "over"},
                }
            },
            {"queued": 0, "pending": 1},
            "held back until 2026-11-22T12:01:00.000Z: 429",
        ),
        ({"next_start": NOW}, {"queued": 0, "pending": 1}, "nothing has moved for 40 s"),
        ({"next_start": NOW + timedelta(minutes=1)}, {"queued": 1}, "nothing has moved for 40 s"),
        (
            {"trouble": "RabbitMQ at a:1 blocks publishers: low on memory"},
            {},
            "RabbitMQ at a:1 blocks publishers: low on memory",
        ),
        (
            {"trouble": "RabbitMQ at a:1 blocks publishers: low on memory", "missing": "mail"},
            {},
            "no worker that is alive has the actor mail",
        ),
        (
            {"trouble": "RabbitMQ at a:1 blocks publishers: low on memory", "able": 0},
            {},
            "no worker that is alive has the actor work",
        ),
        (
            {"trouble": "RabbitMQ at a:1 blocks publishers: low on memory", "due_at": NOW + timedelta(minutes=1)},
            {"queued": 0, "retrying": 1},
            "waiting for a retry at 2026-11-22T12:01:00.000Z",
        ),
        ({}, {"running": 1}, "1 item is held by a dead worker, and will be requeued"),
        ({}, {"running": 2}, "2 items are held by a dead worker, and will be requeued"),
        ({"elsewhere": 8}, {}, "nothing has moved for 40 s; its workers run items of other jobs (8)"),
        ({"sealed": False}, {"queued": 0}, "it is open for more items until it is sealed"),
        ({"sealed": False, "submitting": True}, {"queued": 0}, "its submission is still going on"),
        (
            {"sealed": False, "submitting": False},
            {"queued": 0},
            "its submission broke off at input 500; it will be stopped",
        ),
        (
            {"sealed": False, "submitting": False, "key": "k"},
            {"queued": 0},
            "its submission broke off at input 500; submit it again with the same key, and it goes on",
        ),
        (
            {"sealed": False, "held": True, "submitting": False, "key": "k"},
            {"queued": 0, "pending": 5},
            "its submission broke off at input 500; submit it again with the same key, and it goes on",
        ),
    ],
)
def test_a_standstill_has_a_reason(row: dict[str, Any], parts: dict[str, int], reason: str | None) -> None:
    found, until = job_view.stalled({**STUCK, **row}, {**WAITING, **parts})
    assert found == reason
    # A delay, a rate, a retry and a hold end by themselves.
    assert until == (NOW + timedelta(minutes=1) if "T12:01:00.000Z" in (found or "") else None)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", "{", "", "[" * 100_000])
def test_what_is_not_strict_json_is_text(text: str) -> None:
    assert json_values.parse_strict_json(text) == (False, None)


class Stamp(datetime):
    """As a time of pandas, pendulum or freezegun."""


def test_a_time_is_told_in_utc() -> None:
    local = datetime.fromisoformat("2026-11-22T13:00:00.123456+01:00")
    assert json_values.iso(local) == "2026-11-22T12:00:00.123Z"
    assert json_values.iso(local.replace(microsecond=0)) == "2026-11-22T12:00:00.000Z"
    for microsecond in (0, 123456):
        plain = local.replace(microsecond=microsecond)
        assert json_values.iso(Stamp.fromisoformat(plain.isoformat())) == json_values.iso(plain)


@pytest.mark.parametrize(
    "text", ['{"a": [1.5, null, "é"]}', "1" + "0" * 400, "-12345678901234567890123", "1e400", "[-1e400]", "0.1"]
)
def test_json_of_the_database_is_parsed_as_python_parses_it(text: str) -> None:
    assert json_values.parse_json(text.encode()) == json.loads(text)
