"""What ends by itself is started again, after a pause that grows while it doesn't stay."""

import time

import pytest

from callboard.commands.local.supervisor import LONGEST_PAUSE, LOOK, STEADY, RestartState, Supervisor
from callboard.commands.services import NotStarted
from tests.support.workers import wait_until


class Thing:
    """Something that runs, or doesn't."""

    def __init__(self, *, good: bool = True) -> None:
        self.runs = False
        self.good = good
        self.starts: list[float] = []
        self.now = 0.0

    def start(self) -> None:
        self.starts.append(self.now)
        if not self.good:
            raise NotStarted("it can't")
        self.runs = True

    def kept(self) -> RestartState:
        return RestartState("thing", lambda: self.runs, self.start, "thing.log", since=0.0)


def watch(thing: Thing, kept: RestartState, seconds: float) -> None:
    """Time passes."""
    end = thing.now + seconds
    while thing.now < end:
        thing.now = round(thing.now + LOOK, 3)
        kept.look(thing.now)


def test_what_runs_is_left_alone() -> None:
    thing = Thing()
    thing.runs = True
    watch(thing, thing.kept(), 10)
    assert thing.starts == []


def test_pause_grows_while_it_cannot_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    thing = Thing(good=False)
    watch(thing, thing.kept(), 200)
    pauses = [round(later - before, 3) for before, later in zip(thing.starts, thing.starts[1:], strict=False)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE, abs=2 * LOOK)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "callboard: thing ended by itself (its log: thing.log); it is started again in 0.5 s"
    assert said[1] == "callboard: it can't; it is started again in 1 s"


def test_pause_is_short_again_after_it_ran_for_long() -> None:
    thing, pauses = Thing(), []
    kept = thing.kept()
    for seconds in (1.0, 1.0, STEADY + 1, 1.0):
        ended, thing.runs = thing.now, False
        watch(thing, kept, 0.0)
        while not thing.runs:
            watch(thing, kept, LOOK)
        pauses.append(thing.now - ended)
        watch(thing, kept, seconds)
    assert pauses[1] > pauses[0]
    assert pauses[3] == pytest.approx(pauses[0], abs=LOOK)


def test_keeper_starts_nothing_once_it_is_hushed() -> None:
    thing = Thing()
    keeper = Supervisor([thing.kept()])
    keeper.begin()
    assert wait_until(lambda: thing.runs, 60)
    keeper.hush()
    thing.runs = False
    count = len(thing.starts)
    began = time.monotonic()
    assert not wait_until(lambda: len(thing.starts) > count, 4 * LOOK)
    keeper.end()
    assert time.monotonic() - began < 5
