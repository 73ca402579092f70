"""The journal's thread: an error that nobody thought of is tried again; one that stays is told, not swallowed."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from callboard.middleware import journal as module
from callboard.middleware.attempt import Attempt
from callboard.middleware.hang import Hangs
from callboard.middleware.journal import TRIES, Entry, Journal
from callboard.sql import writes
from callboard.sql.rows import Control, Event, NewItem
from tests.helpers import wait_until

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


class NoDatabase:
    """Lends connections that nothing is asked of."""

    @contextmanager
    def connection(self) -> Iterator[None]:
        yield


class Played:
    """A journal without a database, one of whose parts may fail; `recorded` are the items, in order of flushes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **parts: Callable[..., Any]) -> None:
        self.recorded: list[int] = []
        self.settled: list[int] = []
        self.broken: list[BaseException] = []
        self.attempts: list[Attempt] = []
        monkeypatch.setattr(module, "REST", 0.01)
        monkeypatch.setattr(writes, "record", self._record)
        monkeypatch.setattr(writes, "report_running", lambda *_: None)
        monkeypatch.setattr(writes, "touch_jobs", lambda *_: None)
        given: dict[str, Any] = {
            "worker": lambda: 1, "more_may_come": lambda _: False, "in_hand": lambda: self.attempts,
            "settled": lambda _: None, "controlled": lambda _: None, "store": lambda *_: None,
        }  # fmt: skip
        given.update(parts)
        settle = given.pop("settled")

        def settled(entries: Sequence[Entry]) -> None:
            settle(entries)
            self.settled += [entry.attempt.item for entry in entries]

        self.journal = Journal(cast("Any", NoDatabase()), **given, settled=settled, broken=self.broken.append)

    def _record(self, _: Any, events: Sequence[Event], __: float) -> list[Control]:
        self.recorded += [event.item for event in events]
        return []

    def note(self, item: int) -> None:
        """An attempt that ended."""
        attempt = Attempt(1, item, 1, [SimpleNamespace(actor_name="work")], {}, ended=True)
        self.journal.note(Entry(attempt, Event(1, item, 1, "succeeded", 0.1, 0.0, 1), dead_letter=False))

    def done(self, *items: int) -> bool:
        """Whether these, and no others, were settled; waits for it."""
        return wait_until(lambda: set(self.settled) == set(items) and not self.journal.pending, 20)


@pytest.mark.parametrize("part", ["worker", "in_hand", "settled", "controlled"])
def test_an_error_that_passes_costs_nothing(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"worker": 1, "in_hand": []}
    failing = Failing(TRIES - 1, answers.get(part))
    played = Played(monkeypatch, **{part: failing})
    played.journal.watch()
    played.note(0)
    assert played.done(0)
    assert wait_until(lambda: failing.calls > TRIES - 1, 20)
    played.note(1)
    assert played.done(0, 1)
    assert played.journal.close(10)
    assert played.broken == []


@pytest.mark.parametrize("part", ["worker", "in_hand", "settled", "controlled"])
def test_an_error_that_stays_ends_the_thread_and_is_told(
    part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    played = Played(monkeypatch, **{part: Failing(10**9)})
    played.journal.watch()
    played.note(0)
    assert wait_until(lambda: bool(played.broken), 20)
    assert isinstance(played.broken[0], Unthought)
    assert "the journal can't go on" in caplog.text
    told = threading.Event()
    played.journal.when_written(told.set)
    assert told.is_set()  # nobody waits for a thread that has ended
    if part in ("settled", "controlled"):
        assert played.settled == []  # nothing is acknowledged that was not settled
        assert played.journal.pending == 1


def test_a_listener_that_fails_harms_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, told = threading.Event(), threading.Event()
    played = Played(monkeypatch, controlled=lambda _: gate.wait(20))
    played.note(0)
    assert wait_until(lambda: bool(played.recorded), 20)
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
    monkeypatch.setattr(module, "_blind", said.append)
    played = Played(monkeypatch)
    monkeypatch.setattr(Hangs, part, failing)
    played.attempts = [Attempt(1, 9, 1, [SimpleNamespace(actor_name="work")], {})]
    played.journal.watch()
    for item in range(3):
        played.note(item)
        assert played.done(*range(item + 1))
        assert wait_until(lambda: failing.calls > TRIES or part == "learn", 20)
    assert played.recorded == [0, 1, 2]
    assert played.broken == []
    assert said


def test_who_sends_is_told_of_an_error_that_nobody_thought_of(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, settled=Failing(10**9))
    played.note(0)
    assert wait_until(lambda: bool(played.broken), 20)
    failing = Played(monkeypatch, store=Failing(1))
    assert isinstance(failing.journal.send(ITEM).exception(20), Unthought)
    assert failing.journal.close(10)
