"""A thread that repeats a step: its pace, what it survives, and how it ends."""

import logging
import threading
from collections.abc import Iterator

import psycopg
import pytest

from callboard.middleware.process.periodic import RETRY_SECONDS, Periodic
from tests.support.timer import Timer

LONG = 60.0
TIMEOUT = 300.0


class Counted:
    """A step that counts its runs."""

    def __init__(self) -> None:
        self.ran = threading.Semaphore(0)
        self.returns: float | None = None
        self.fails: BaseException | None = None

    def __call__(self) -> float | None:
        self.ran.release()
        if self.fails is not None:
            raise self.fails
        return self.returns

    def runs_again(self, timeout: float = TIMEOUT) -> bool:
        return self.ran.acquire(timeout=timeout)


@pytest.fixture
def step() -> Counted:
    return Counted()


@pytest.fixture
def slow(step: Counted) -> Iterator[Periodic]:
    """Its step runs when it is woken, since its period is longer than the test."""
    made = Periodic("test", LONG, step)
    yield made
    made.stop(TIMEOUT)


def test_the_step_is_repeated_after_each_period(step: Counted) -> None:
    periodic = Periodic("test", 0.01, step)
    periodic.start()
    assert all(step.runs_again() for _ in range(3))
    periodic.stop(TIMEOUT)
    assert periodic._thread is not None
    assert not periodic._thread.is_alive()


def test_the_first_step_comes_after_a_period_or_when_it_is_woken(step: Counted, slow: Periodic) -> None:
    slow.start()
    assert not step.runs_again(0.05)
    slow.wake()
    assert step.runs_again()
    assert not step.runs_again(0.05)


def test_a_step_says_when_it_runs_next(step: Counted, slow: Periodic) -> None:
    assert slow.run_step() == LONG
    step.returns = 0.0
    assert slow.run_step() == 0.0


@pytest.mark.parametrize("error", [ValueError("strange"), psycopg.OperationalError("away"), SystemExit("leaving")])
def test_an_error_does_not_end_the_thread(
    error: BaseException, step: Counted, slow: Periodic, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    step.fails = error
    slow.start()
    for _ in range(2):
        slow.wake()
        assert step.runs_again()
    assert str(error) in caplog.text
    assert slow.run_step() == RETRY_SECONDS, "an outage is over before the next period"


def test_an_outage_is_logged_as_its_owner_wants(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[BaseException] = []
    error = psycopg.OperationalError("away")

    def fails() -> None:
        raise error

    assert Periodic("test", 0.5, fails, seen.append).run_step() == 0.5
    assert seen == [error]
    assert caplog.text == ""


def test_a_stop_waits_for_a_step_at_most_so_long() -> None:
    begun, go = threading.Event(), threading.Event()

    def stands() -> None:
        begun.set()
        go.wait(TIMEOUT)

    periodic = Periodic("test", LONG, stands)
    periodic.start()
    periodic.wake()
    assert begun.wait(TIMEOUT)
    timer = Timer()
    periodic.stop(0.1)
    assert timer.seconds < TIMEOUT / 2
    go.set()
    periodic.stop(TIMEOUT)
    periodic.start()
    assert periodic._thread is not None
    assert not periodic._thread.is_alive(), "after its stop nothing starts it"
