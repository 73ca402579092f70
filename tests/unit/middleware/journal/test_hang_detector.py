"""Which attempts hang, and what their stacks show."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from callboard.middleware.journal.hang_detector import GONE, SAMPLE_SECONDS, STACK_CHARS, STACK_FRAMES, HangDetector
from callboard.middleware.message.attempt import Attempt
from tests.support.workers import wait_until

START = 1_000.0


def attempt(actor: str = "work", *, thread: int | None = None, started: float = START) -> Attempt:
    """An attempt in flight that has a row in `running`."""
    made = Attempt(1, 2, 3, [], {}, actor=actor, started=started, reported=True)
    made.thread = made.thread if thread is None else thread
    return made


def unknown(_: str) -> float:
    """The seconds of an actor of which no attempt has ended."""
    return 0.0


def deep(depth: int, stands: threading.Event, go: threading.Event) -> None:
    """Wait `depth` frames deep until `go` is set."""
    if depth:
        deep(depth - 1, stands, go)
    else:
        stands.set()
        go.wait(300)


@pytest.fixture
def stuck() -> Iterator[int]:
    """A thread that waits deep in its actor."""
    stands, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=deep, args=(50, stands, go))
    thread.start()
    stands.wait(300)
    yield thread.ident or 0
    go.set()
    thread.join(300)


def test_an_unknown_actor_hangs_after_the_least_time() -> None:
    hangs = HangDetector(unknown, 60.0)
    assert hangs.limit("work") == 60.0
    assert hangs.look([attempt()], START + 59) == []
    assert len(hangs.look([attempt()], START + 60)) == 1


def test_a_slow_actor_hangs_after_ten_times_its_typical_time() -> None:
    hangs = HangDetector({"slow": 30.0, "quick": 0.01}.__getitem__, 60.0)
    assert hangs.limit("slow") == pytest.approx(300.0)
    assert hangs.limit("quick") == 60.0
    assert hangs.look([attempt("slow"), attempt("quick")], START + 299)[0].stack
    assert len(hangs.look([attempt("slow"), attempt("quick")], START + 301)) == 2


def test_an_attempt_is_sampled_again_after_a_while_and_not_when_it_ended() -> None:
    hangs, one = HangDetector(unknown, 60.0), attempt()
    assert hangs.look([one], START + 60)
    assert hangs.look([one], START + 60 + SAMPLE_SECONDS / 2) == []
    assert hangs.look([one], START + 60 + SAMPLE_SECONDS)
    one.ended = True
    assert hangs.look([one], START + 60 + 2 * SAMPLE_SECONDS) == []


def test_an_attempt_that_says_something_new_does_not_hang() -> None:
    hangs, one = HangDetector(unknown, 60.0), attempt()
    one.moved = START + 50
    assert hangs.look([one], START + 109) == []
    assert hangs.look([one], START + 110)
    one.moved = START + 115
    assert hangs.look([one], START + 110 + SAMPLE_SECONDS) == []
    assert hangs.look([one], START + 174) == []
    assert hangs.look([one], START + 175)


def test_an_attempt_without_a_row_in_running_is_not_sampled() -> None:
    one = attempt()
    one.reported = False
    assert HangDetector(unknown, 60.0).look([one], START + 1000) == []


def test_a_stack_starts_with_the_innermost_frame_and_is_cut(stuck: int) -> None:
    found: list[Any] = []

    def waits() -> bool:
        """Whether the thread stands in `wait`, and no more on its way there."""
        found[:] = HangDetector(unknown, 60.0).look([attempt(thread=stuck)], START + 60)
        return str(found[0].stack).partition("\n")[0].endswith(" in wait")

    assert wait_until(waits, 300)
    (stack,) = found
    frames = [line for line in stack.stack.splitlines() if not line.startswith("    ")]
    assert (stack.job, stack.item, stack.attempt) == (1, 2, 3)
    assert len(frames) == STACK_FRAMES
    assert len(stack.stack) <= STACK_CHARS
    assert stack.place.startswith("journal/test_hang_detector.py:")
    assert stack.place.endswith(" in deep")
    assert frames[-1].endswith(" in deep")
    assert "journal/test_hang_detector.py" in frames[-1]


def test_the_stack_of_an_ended_thread_says_so() -> None:
    (stack,) = HangDetector(unknown, 60.0).look([attempt(thread=-1)], START + 60)
    assert stack.stack == stack.place == GONE


@pytest.mark.parametrize(("value", "seconds"), [("", 60.0), ("2.5", 2.5), ("600", 600.0)])
def test_the_least_time_is_a_setting(value: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_HUNG_AFTER", value)
    assert HangDetector(unknown).least == seconds
