"""Progress that an actor reports: what is accepted, what is refused, and where."""

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

import callboard
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.sql.rows import JobControl, Progress


@pytest.fixture
def attempt() -> Iterator[Attempt]:
    """An attempt that runs."""
    made = Attempt(1, 2, 1, [], {})
    token = current_attempt.set(made)
    yield made
    current_attempt.reset(token)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ((3, 10), (3.0, 10.0)),
        ((0, 0.5), (0.0, 0.5)),
        ((7,), (7.0, None)),
        ((10, 10), (10.0, 10.0)),
        ((11, 10), (10.0, 10.0)),  # an estimate that was passed
    ],
)
def test_progress_is_kept(
    said: tuple[float, ...], kept: tuple[float, float | None], attempt: Attempt
) -> None:
    callboard.progress(*said)
    assert attempt.progress == kept
    assert attempt.unreported


@pytest.mark.parametrize(
    ("done", "total", "why"),
    [
        (-1, 10, "done must be a number from 0, not -1"),
        (1, -10, "total must be a number from 0, not -10"),
        (0, 0, "total must be above 0, or None"),
        (float("nan"), 10, "done must be a number from 0, not nan"),
        (1, float("nan"), "total must be a number from 0, not nan"),
        (float("inf"), None, "done must be a number from 0, not inf"),
        (10**400, None, "done must be a number from 0, not 1000"),
        ("3", 10, "done must be a number from 0, not '3'"),
        (True, None, "done must be a number from 0, not True"),
        (Decimal(1), None, "done must be a number from 0"),
    ],
)
def test_progress_must_be_a_number(done: Any, total: Any, why: str, attempt: Attempt) -> None:
    attempt.progress = Progress(1.0, 2.0)
    with pytest.raises(ValueError, match=why):
        callboard.progress(done, total)
    assert attempt.progress == (1.0, 2.0)


def test_progress_outside_an_item_is_refused(attempt: Attempt) -> None:
    attempt.ended = True
    with pytest.raises(callboard.NotInAnItem, match=r"progress\(\) was called outside a tracked actor"):
        callboard.progress(1, 2)


@pytest.mark.parametrize(
    ("epoch", "control", "cancelled"),
    [
        (0, None, False),
        (0, JobControl(1, "cancelled", 1), True),
        (0, JobControl(1, "running", 0, stopping=True), True),
        (1, JobControl(1, "failed", 1), True),
        # The job was retried since; this worker has not heard of it yet.
        (2, JobControl(1, "cancelled", 1), False),
        (2, JobControl(1, "paused", 2), False),
    ],
)
def test_an_item_is_cancelled_by_what_happened_to_its_job_after_its_message_was_sent(
    epoch: int, control: JobControl | None, cancelled: bool
) -> None:
    made = Attempt(1, 2, 1, [], {} if control is None else {1: control}, epoch)
    token = current_attempt.set(made)
    try:
        assert callboard.current().cancelled is cancelled
    finally:
        current_attempt.reset(token)
