"""The mean duration of actors: by few attempts too, once enough are known, and soon slow."""

import pytest

from callboard.middleware.attempts.durations import MIN_ATTEMPTS, Durations


def test_the_mean_is_told_when_enough_attempts_have_ended_and_once() -> None:
    durations = Durations()
    for _ in range(MIN_ATTEMPTS - 1):
        durations.add("fast", 0.001)
    assert durations.take() == {}
    durations.add("fast", 0.021)
    durations.add("other", 1.0)
    assert durations.take() == {"fast": pytest.approx(0.002)}
    assert durations.take() == {}


def test_the_typical_time_is_known_from_the_first_attempt() -> None:
    durations = Durations()
    assert durations.typical("one") == 0
    durations.add("one", 1.0)
    durations.add("one", 3.0)
    assert durations.typical("one") == 2.0
    for _ in range(MIN_ATTEMPTS):
        durations.add("one", 2.0)
    durations.take()
    durations.add("one", 9.0)
    assert durations.typical("one") == 2.0


def test_an_actor_that_turns_slow_is_slow_by_its_first_attempts() -> None:
    durations = Durations()
    for _ in range(10_000):
        durations.add("one", 0.001)
    durations.take()
    for _ in range(8):
        durations.add("one", 1.0)
    assert durations.take()["one"] == pytest.approx(0.4, rel=0.01)
    for _ in range(1_000):
        durations.add("one", 0.001)
    assert durations.take()["one"] == pytest.approx(0.001)
