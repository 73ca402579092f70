"""The journal's thread: an error that nobody thought of is tried again; one that stays is told, not swallowed."""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psycopg
import pytest

from callboard.middleware.journal import journal as module
from callboard.middleware.journal import running_rows
from callboard.middleware.journal.hang_detector import HangDetector
from callboard.middleware.journal.journal import MAX_ERRORS, Entry, Journal
from callboard.middleware.message.attempt import Attempt
from callboard.sql.rows import Event, JobControl, NewItem, Progress, Running
from callboard.sql.writes import outcomes
from tests.support.deliveries import make_attempt
from tests.support.process_parts import RecordedAttempts, process_without_database
from tests.support.workers import wait_until

ITEM = NewItem(0, "work", "default", "m1", b"{}", None, 0)


class Unthought(Exception):
    """What nobody thought of."""


class Failing:
    """Raises for so many calls, then does nothing."""

    def __init__(self, times: int, answer: Any = None) -> None:
        self.times, self.answer = times, answer
        self.calls = 0

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise Unthought("something is wrong")
        return self.answer


class Played:
    """A journal without a database, one of whose parts may fail; `recorded` are the items, in order of flushes.

    `parts` replace methods of the attempts in flight, or `store`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **parts: Callable[..., Any]) -> None:
        self.recorded: list[int] = []
        self.broken: list[BaseException] = []
        monkeypatch.setattr(module, "ERROR_PAUSE_SECONDS", 0.01)
        monkeypatch.setattr(outcomes, "record", self._record)
        self.reported: list[Running] = []
        monkeypatch.setattr(outcomes, "report_running", lambda _, __, running: self.reported.extend(running))
        monkeypatch.setattr(outcomes, "touch_jobs", lambda *_: None)
        self.attempts = RecordedAttempts()
        fails = parts.pop("acknowledge", None)
        acknowledge = self.attempts.acknowledge

        def acknowledged(entries: Sequence[Entry]) -> None:
            if fails is not None:
                fails(entries)
            acknowledge(entries)

        self.attempts.acknowledge = acknowledged  # type: ignore[method-assign]
        store = parts.pop("store", lambda *_: None)
        for name, part in parts.items():
            setattr(self.attempts, name, part)
        self.journal = Journal(process_without_database(), self.attempts, store, on_broken=self.broken.append)

    def _record(self, _: Any, events: Sequence[Event], __: float) -> list[JobControl]:
        self.recorded += [event.item for event in events]
        return []

    def note(self, item: int) -> None:
        """An attempt that ended."""
        attempt = make_attempt(item=item, ended=True)
        self.journal.add(Entry(attempt, Event(1, item, 1, "succeeded", 0.1, 0.0, 1), dead_letter=False))

    def done(self, *items: int) -> bool:
        """Whether these, and no others, were settled; waits for it."""
        return wait_until(lambda: set(self.acknowledged) == set(items) and not self.journal.pending, 60)

    @property
    def acknowledged(self) -> list[int]:
        return [entry.attempt.item for entry in self.attempts.acknowledged]


@pytest.mark.parametrize("part", ["attempts", "acknowledge", "apply_controls"])
def test_an_error_that_passes_costs_nothing(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(MAX_ERRORS - 1, [] if part == "attempts" else None)
    played = Played(monkeypatch, **{part: failing})
    played.journal.watch()
    played.note(0)
    assert played.done(0)
    assert wait_until(lambda: failing.calls > MAX_ERRORS - 1, 60)
    played.note(1)
    assert played.done(0, 1)
    assert played.journal.close(10)
    assert played.broken == []


@pytest.mark.parametrize("part", ["attempts", "acknowledge", "apply_controls"])
def test_an_error_that_stays_ends_the_thread_and_is_told(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played = Played(monkeypatch, **{part: Failing(10**9)})
    played.journal.watch()
    played.note(0)
    assert wait_until(lambda: bool(played.broken), 60)
    assert isinstance(played.broken[0], Unthought)
    assert "the journal can't go on" in caplog.text
    told = threading.Event()
    played.journal.when_written(told.set)
    assert told.is_set()  # nobody waits for a thread that has ended
    if part in ("acknowledge", "apply_controls"):
        assert played.acknowledged == []  # nothing is acknowledged that was not settled
        assert played.journal.pending == 1


def test_a_listener_that_fails_harms_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, told = threading.Event(), threading.Event()
    played = Played(monkeypatch, apply_controls=lambda _: gate.wait(20))
    played.note(0)
    assert wait_until(lambda: bool(played.recorded), 60)
    played.journal.when_written(told.set)
    played.journal.when_written(Failing(1))
    gate.set()
    assert told.wait(20)
    played.note(1)
    assert played.done(0, 1)
    assert played.broken == []


@pytest.mark.parametrize("part", ["look", "learn"])
def test_looking_at_what_hangs_never_harms(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(10**9)
    said: list[BaseException] = []
    monkeypatch.setattr(running_rows, "_log_blind", said.append)
    attempts = [make_attempt(item=9)]
    played = Played(monkeypatch, attempts=lambda: attempts)
    monkeypatch.setattr(HangDetector, part, failing)
    played.journal.watch()
    for item in range(3):
        played.note(item)
        assert played.done(*range(item + 1))
        assert wait_until(lambda: failing.calls > MAX_ERRORS or part == "learn", 60)
    assert played.journal.close(10)
    assert played.recorded == [0, 1, 2]
    assert played.broken == []
    assert said


def in_hand(**said: Any) -> Attempt:
    return make_attempt(item=9, **said)


def test_of_many_words_on_progress_only_the_last_before_a_look_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempt, looks = in_hand(), list[int]()

    def look() -> list[Attempt]:
        """An actor that says a thousand things between two looks, for three of them, and the same ever after."""
        looks.append(1)
        for word in range(1000):
            attempt.progress = Progress(1000.0 * min(len(looks), 3) + word, None)
        return [attempt]

    monkeypatch.setattr(running_rows, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(running_rows, "SLOW_SECONDS", 3600.0)
    played = Played(monkeypatch, attempts=look)
    played.journal.watch()
    assert wait_until(lambda: len(looks) > 8, 60)
    assert played.journal.close(10)
    expected = [(1999.0, None), (2999.0, None), (3999.0, None)]
    assert [running.progress for running in played.reported] == expected


def test_what_could_not_be_written_is_written_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, attempts=lambda: [attempt])
    attempt = in_hand(progress=Progress(1.0, 2.0))
    away = iter([psycopg.OperationalError("away")] * 2)

    def report(_: Any, __: Any, running: Sequence[Running]) -> None:
        for error in away:
            raise error
        played.reported.extend(running)

    monkeypatch.setattr(outcomes, "report_running", report)
    played.journal.watch()
    assert wait_until(lambda: bool(played.reported), 60)
    assert played.journal.close(10)
    assert [running.progress for running in played.reported] == [(1.0, 2.0)]


def test_who_says_nothing_costs_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[int]()

    def look() -> list[Attempt]:
        looks.append(1)
        return [attempt]

    attempt = in_hand(reported=True)
    monkeypatch.setattr(running_rows, "LOOK_SECONDS", 0.01)
    played = Played(monkeypatch, attempts=look)
    played.journal.watch()
    assert wait_until(lambda: len(looks) > 5, 60)
    assert played.journal.close(10)
    assert played.reported == []


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (psycopg.OperationalError("away"), "the database can be written to again, after"),
        (psycopg.errors.ReadOnlySqlTransaction("reads only"), "records outcomes again, after"),
    ],
)
def test_the_end_of_an_outage_is_said(
    error: psycopg.Error, end: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for outage_log in (module._log_outage, module._log_misconfigured):
        monkeypatch.setattr(outage_log, "_logged_at", -math.inf)
    played = Played(monkeypatch)
    recorded, answers = outcomes.record, [error]

    def record(*given: Any) -> list[JobControl]:
        if answers:
            raise answers.pop()
        return recorded(*given)

    monkeypatch.setattr(outcomes, "record", record)
    for item in range(3):
        played.note(item)
        assert played.done(*range(item + 1))
    assert played.journal.close(10)
    assert len(caplog.messages) == 2
    assert str(error) in caplog.messages[0]
    assert end in caplog.messages[1]


def test_a_long_life_does_not_remember_every_job_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, touched = list[int](), list[int]()

    def look() -> list[Attempt]:
        looks.append(1)
        return [make_attempt(len(looks))]

    monkeypatch.setattr(running_rows, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(running_rows, "STARTED_JOBS", 5)
    played = Played(monkeypatch, attempts=look)
    monkeypatch.setattr(outcomes, "touch_jobs", lambda _, jobs: touched.extend(jobs))
    played.journal.watch()
    assert wait_until(lambda: len(looks) > 20, 20)
    assert played.journal.close(10)
    assert touched == list(range(1, len(looks) + 1))
    assert 0 < len(played.journal._running_rows._started_jobs) <= 5


def test_who_sends_is_told_of_an_error_that_nobody_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, acknowledge=Failing(10**9))
    played.note(0)
    assert wait_until(lambda: bool(played.broken), 60)
    failing = Played(monkeypatch, store=Failing(1))
    assert isinstance(failing.journal.send(ITEM).exception(20), Unthought)
    assert failing.journal.close(10)
