"""The journal's thread tries again after an unexpected error, and reports one that stays."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

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

TIMEOUT = 300.0
ITEM = NewItem(0, "work", "default", "m1", b"{}", None, 0)


class Unexpected(Exception):
    """An error that no code expects."""


class Failing:
    """Raises for so many calls, then does nothing."""

    def __init__(self, times: int, answer: Any = None) -> None:
        self.times, self.answer = times, answer
        self.calls = 0
        self.error: Exception = Unexpected("something is wrong")

    def __call__(self, *_: Any, **__: Any) -> Any:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return self.answer


class JournalWithoutDatabase:
    """A journal without a database, one of whose parts may fail; `recorded` are the items, in order of flushes.

    `parts` replace methods of the attempts in flight, or `store`.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **parts: Callable[..., Any]) -> None:
        self.recorded: list[int] = []
        self.broken: list[BaseException] = []
        monkeypatch.setattr(module, "ERROR_PAUSE_SECONDS", 0.01)
        monkeypatch.setattr(outcomes, "record", self._record)
        self.reported: list[Running] = []
        monkeypatch.setattr(outcomes, "report_running", self._report)
        monkeypatch.setattr(outcomes, "touch_jobs", lambda *_: set())
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

    def _report(self, _: Any, __: Any, running: Sequence[Running]) -> set[tuple[int, int]]:
        self.reported += running
        return {(one.job, one.item) for one in running}

    def note(self, item: int, *, ended: float = 0.0, **more: Any) -> None:
        """An attempt that ended."""
        attempt = make_attempt(item=item, ended=True)
        self.journal.add(Entry(attempt, Event(1, item, 1, "succeeded", 0.1, ended, 1, **more), dead_letter=False))

    def done(self, *items: int) -> bool:
        """Wait until these items, and no others, are acknowledged; return whether they are."""
        return wait_until(lambda: set(self.acknowledged) == set(items) and not self.journal.pending, TIMEOUT)

    @property
    def acknowledged(self) -> list[int]:
        return [entry.attempt.item for entry in self.attempts.acknowledged]


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [([], []), ([1] * 1001, [1000, 1]), ([10**9] * 3, [1, 1, 1]), ([10 * 2**20, 6 * 2**20, 1, 1], [2, 2])],
)
def test_a_batch_is_bounded_by_its_bytes(sizes: list[int], batches: list[int]) -> None:
    found = []
    while sizes:
        found.append(len(sizes[: module._batch(sizes)]))
        sizes = sizes[found[-1] :]
    assert found == batches


def test_what_ended_while_others_were_written_waits_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its window has passed meanwhile, and a worker whose messages have all ended stands still until the commit."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 2 * TIMEOUT)
    rig = JournalWithoutDatabase(monkeypatch, expects_more=lambda _: True)
    rig.note(0, ended=time.monotonic() - 2 * TIMEOUT)
    assert rig.done(0)
    assert rig.journal.close(TIMEOUT)


NO_ROOM = [
    psycopg.errors.OutOfMemory("out of memory"),
    psycopg.errors.StatementTooComplex("stack depth limit exceeded"),
    psycopg.errors.InternalError_("invalid memory alloc request size 1073741824"),
    psycopg.OperationalError("cannot allocate memory for output buffer"),
    MemoryError(),
]


@pytest.mark.parametrize("error", NO_ROOM, ids=[type(error).__name__ for error in NO_ROOM])
def test_an_outcome_for_which_the_database_has_no_room_is_its_items_failure(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be tried again for ever, and the outcomes behind it would wait. A result alone fails no item."""
    rig = JournalWithoutDatabase(monkeypatch)
    ends: dict[int, Event] = {}

    def record(_: Any, events: Sequence[Event], __: float) -> list[JobControl]:
        if sum(event.size for event in events) > 2 * 2**20:
            raise error
        ends.update((event.item, event) for event in events)
        return []

    monkeypatch.setattr(outcomes, "record", record)
    child = replace(ITEM, args=b"x" * 2**20)
    rig.note(0)
    rig.note(1, children=(child,) * 3)
    rig.note(2, result="x" * 3 * 2**20)
    rig.note(3)
    assert rig.done(0, 1, 2, 3)
    assert rig.journal.close(TIMEOUT)
    assert {n: end.state for n, end in ends.items()} == {0: "succeeded", 1: "failed", 2: "succeeded", 3: "succeeded"}
    assert "too much for the database" in (ends[1].failure.message if ends[1].failure else "")
    assert "too much for the database" in (ends[2].unkept or "")
    assert (ends[1].children, ends[2].result) == ((), None)


def test_a_small_outcome_waits_until_the_database_has_memory_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = JournalWithoutDatabase(monkeypatch)
    failing = Failing(2, [])
    failing.error = psycopg.errors.OutOfMemory("out of memory")
    monkeypatch.setattr(outcomes, "record", failing)
    rig.note(0)
    assert rig.done(0)
    assert failing.calls == 3
    assert rig.journal.close(TIMEOUT)


@pytest.mark.parametrize("part", ["attempts", "acknowledge", "apply_controls"])
def test_an_unexpected_error_that_passes_loses_nothing(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(MAX_ERRORS - 1, [] if part == "attempts" else None)
    rig = JournalWithoutDatabase(monkeypatch, **{part: failing})
    rig.journal.watch()
    rig.note(0)
    assert rig.done(0)
    assert wait_until(lambda: failing.calls > MAX_ERRORS - 1, TIMEOUT)
    rig.note(1)
    assert rig.done(0, 1)
    assert rig.journal.close(TIMEOUT)
    assert rig.broken == []


@pytest.mark.parametrize("part", ["attempts", "acknowledge", "apply_controls"])
def test_an_unexpected_error_that_stays_ends_the_thread_and_is_reported(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = JournalWithoutDatabase(monkeypatch, **{part: Failing(10**9)})
    called = threading.Event()

    def report(error: BaseException) -> None:
        rig.journal.when_written(called.set)
        rig.broken.append(error)

    rig.journal.on_broken = report
    rig.journal.watch()
    rig.note(0)
    assert wait_until(lambda: bool(rig.broken), TIMEOUT)
    assert isinstance(rig.broken[0], Unexpected)
    assert "the journal can't go on" in caplog.text
    assert called.is_set(), "nobody waits for a thread that ends"
    if part in ("acknowledge", "apply_controls"):
        assert rig.acknowledged == []  # nothing is acknowledged that was not settled
        assert rig.journal.pending == 1


def test_a_listener_that_fails_does_not_stop_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, called = threading.Event(), threading.Event()
    rig = JournalWithoutDatabase(monkeypatch, apply_controls=lambda _: gate.wait(TIMEOUT))
    rig.note(0)
    assert wait_until(lambda: bool(rig.recorded), TIMEOUT)
    rig.journal.when_written(called.set)
    rig.journal.when_written(Failing(1))
    gate.set()
    assert called.wait(TIMEOUT)
    rig.note(1)
    assert rig.done(0, 1)
    assert rig.broken == []


def test_a_failing_hang_detector_does_not_stop_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(10**9)
    said: list[BaseException] = []
    monkeypatch.setattr(running_rows, "_log_blind", said.append)
    attempts = [make_attempt(item=9)]
    rig = JournalWithoutDatabase(monkeypatch, attempts=lambda: attempts)
    monkeypatch.setattr(HangDetector, "look", failing)
    rig.journal.watch()
    for item in range(3):
        rig.note(item)
        assert rig.done(*range(item + 1))
        assert wait_until(lambda: failing.calls > MAX_ERRORS, TIMEOUT)
    assert rig.journal.close(TIMEOUT)
    assert rig.recorded == [0, 1, 2]
    assert rig.broken == []
    assert said


def attempt_nine(**said: Any) -> Attempt:
    return make_attempt(item=9, **said)


def test_only_the_last_progress_before_a_look_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt, looks = attempt_nine(), list[int]()

    def look() -> list[Attempt]:
        """The actor reports progress a thousand times between two looks, for three looks, then the same again."""
        looks.append(1)
        for word in range(1000):
            attempt.progress = Progress(1000.0 * min(len(looks), 3) + word, None)
        return [attempt]

    monkeypatch.setattr(running_rows, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(running_rows, "SLOW_SECONDS", 3600.0)
    rig = JournalWithoutDatabase(monkeypatch, attempts=look)
    rig.journal.watch()
    assert wait_until(lambda: len(looks) > 8, TIMEOUT)
    assert rig.journal.close(TIMEOUT)
    expected = [(1999.0, None), (2999.0, None), (3999.0, None)]
    assert [running.progress for running in rig.reported] == expected


def test_progress_that_could_not_be_written_is_written_at_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = JournalWithoutDatabase(monkeypatch, attempts=lambda: [attempt])
    attempt = attempt_nine(progress=Progress(1.0, 2.0))
    away = iter([psycopg.OperationalError("away")] * 2)

    def report(*given: Any) -> set[tuple[int, int]]:
        for error in away:
            raise error
        return rig._report(*given)

    monkeypatch.setattr(outcomes, "report_running", report)
    rig.journal.watch()
    assert wait_until(lambda: bool(rig.reported), TIMEOUT)
    assert rig.journal.close(TIMEOUT)
    assert [running.progress for running in rig.reported] == [(1.0, 2.0)]


def test_an_attempt_without_news_costs_no_write(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = list[int]()

    def look() -> list[Attempt]:
        looks.append(1)
        return [attempt]

    attempt = attempt_nine(reported=True)
    monkeypatch.setattr(running_rows, "LOOK_SECONDS", 0.01)
    rig = JournalWithoutDatabase(monkeypatch, attempts=look)
    rig.journal.watch()
    assert wait_until(lambda: len(looks) > 5, TIMEOUT)
    assert rig.journal.close(TIMEOUT)
    assert rig.reported == []


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (psycopg.OperationalError("away"), "the database can be written to again, after"),
        (psycopg.errors.ReadOnlySqlTransaction("reads only"), "records outcomes again, after"),
    ],
)
def test_the_end_of_an_outage_is_logged(
    error: psycopg.Error, end: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for outage_log in (module._log_outage, module._log_misconfigured):
        monkeypatch.setattr(outage_log, "_logged_at", -math.inf)
    rig = JournalWithoutDatabase(monkeypatch)
    recorded, answers = outcomes.record, [error]

    def record(*given: Any) -> list[JobControl]:
        if answers:
            raise answers.pop()
        return recorded(*given)

    monkeypatch.setattr(outcomes, "record", record)
    for item in range(3):
        rig.note(item)
        assert rig.done(*range(item + 1))
    assert rig.journal.close(TIMEOUT)
    assert len(caplog.messages) == 2
    assert str(error) in caplog.messages[0]
    assert end in caplog.messages[1]


def test_a_process_does_not_remember_every_job_that_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, touched = list[int](), list[int]()

    def look() -> list[Attempt]:
        looks.append(1)
        return [make_attempt(len(looks))]

    def touch(_: Any, jobs: dict[int, tuple[str | None, float]]) -> set[int]:
        touched.extend(jobs)
        return set()

    monkeypatch.setattr(running_rows, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(running_rows, "STARTED_JOBS", 5)
    rig = JournalWithoutDatabase(monkeypatch, attempts=look)
    monkeypatch.setattr(outcomes, "touch_jobs", touch)
    rig.journal.watch()
    assert wait_until(lambda: len(looks) > 20, TIMEOUT)
    assert rig.journal.close(TIMEOUT)
    assert touched == list(range(1, len(looks) + 1))
    assert 0 < len(rig.journal._running_rows._started_jobs) <= 5


def test_a_send_for_which_there_is_no_connection_is_not_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender has waited for one already. Else it gives up first, and can't say that nothing is stored."""
    store = Failing(1)
    store.error = PoolTimeout("couldn't get a connection")
    rig = JournalWithoutDatabase(monkeypatch, store=store)
    assert rig.journal.send(ITEM).exception(TIMEOUT) is store.error
    assert rig.journal.close(TIMEOUT)


def test_a_sender_gets_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = JournalWithoutDatabase(monkeypatch, acknowledge=Failing(10**9))
    rig.note(0)
    assert wait_until(lambda: bool(rig.broken), TIMEOUT)
    failing = JournalWithoutDatabase(monkeypatch, store=Failing(1))
    assert isinstance(failing.journal.send(ITEM).exception(TIMEOUT), Unexpected)
    assert failing.journal.close(TIMEOUT)


def test_the_time_of_a_commit_is_that_of_its_last_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefetch grows with it, and must not after an outage."""
    now = 0.0

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    rig = JournalWithoutDatabase(monkeypatch)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now, sleep=passes))
    answers: list[Exception | None] = [psycopg.OperationalError("the database is away"), None]

    def record(*_: Any) -> list[JobControl]:
        passes(0.25)
        if (error := answers.pop(0)) is not None:
            raise error
        return []

    monkeypatch.setattr(outcomes, "record", record)
    attempt = make_attempt(item=0, ended=True)
    rig.journal._commit([Entry(attempt, Event(1, 0, 1, "succeeded", 0.1, 0.0, 1), dead_letter=False)])
    assert now > 0.5
    assert rig.journal.commit_seconds == pytest.approx(0.25)
