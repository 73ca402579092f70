"""How deep a worker prefetches: enough to cover a flush, and few enough not to hoard slow items."""

import time
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.rabbitmq.prefetch import (
    COVER_SECONDS,
    FIRST_MEASURE_SECONDS,
    MAX_EXTRA,
    MAX_PREFETCH,
    MEASURE_SECONDS,
    SHRINK_AFTER_MEASUREMENTS,
    Prefetch,
    wanted_prefetch,
)

THREADS = st.integers(1, 600)
RATES = st.floats(0, 1e6)


@given(THREADS, RATES, RATES)
def test_faster_actors_get_a_deeper_prefetch(threads: int, one: float, other: float) -> None:
    slow, fast = sorted((one, other))
    assert wanted_prefetch(threads, slow) <= wanted_prefetch(threads, fast)


@given(THREADS, RATES)
def test_each_thread_has_something_to_do_and_the_prefetch_is_limited(threads: int, rate: float) -> None:
    found = wanted_prefetch(threads, rate)
    assert max(threads, 2) <= found <= max(MAX_PREFETCH, threads)


def test_slow_items_are_not_hoarded() -> None:
    assert wanted_prefetch(8, 1.0) <= 12


def test_fast_items_cover_what_a_flush_takes() -> None:
    assert wanted_prefetch(8, 4000) >= 4000 * COVER_SECONDS


def test_what_waits_for_a_lock_leaves_room_for_others_and_for_no_more_than_a_limit() -> None:
    """Also before anything is settled; and when it waits no more, the prefetch shrinks."""
    prefetch, now, depths = Prefetch(16, 8), time.monotonic(), [16]
    for _ in range(20):
        now += MEASURE_SECONDS * 1.01
        prefetch.adapt(now, 0, held_up=depths[-1])
        depths.append(prefetch.depth)
    assert depths[1] > 32
    assert MAX_EXTRA / 1.5 <= depths[-1] <= wanted_prefetch(8, 0.0) + MAX_EXTRA
    for _ in range(SHRINK_AFTER_MEASUREMENTS):
        now += MEASURE_SECONDS * 1.01
        prefetch.adapt(now, 1)
    assert prefetch.depth < 32


@dataclass
class Prefetching:
    """A prefetch, adapted as time passes."""

    prefetch: Prefetch
    now: float
    settled: int = 0

    def measure(self, times: int, rate: float) -> int:
        """Measure so many times; return how often the depth changed."""
        changes = 0
        for _ in range(times):
            self.now += MEASURE_SECONDS * 1.01  # rounding must not decide what is due
            self.settled += round(rate * MEASURE_SECONDS)
            changes += self.prefetch.adapt(self.now, self.settled)
        return changes


def prefetching(depth: int = 16, threads: int | None = 8) -> Prefetching:
    prefetch = Prefetch(depth, threads)
    return Prefetching(prefetch, prefetch._measured_at)


def test_the_prefetch_grows_at_once_and_shrinks_after_a_while() -> None:
    worker = prefetching()
    assert worker.measure(1, 4000) == 1
    deep = worker.prefetch.depth
    assert deep >= 4000 * COVER_SECONDS
    assert worker.measure(SHRINK_AFTER_MEASUREMENTS - 1, 0) == 0
    assert worker.prefetch.depth == deep
    assert worker.measure(2, 0) == 1
    assert worker.prefetch.depth <= 12


def test_an_even_rate_keeps_the_prefetch() -> None:
    worker = prefetching()
    worker.measure(20, 2000)
    assert worker.measure(200, 2000) == 0


def test_a_prefetch_that_was_set_by_the_user_stays() -> None:
    assert prefetching(threads=None).measure(100, 5000) == 0


def test_a_measurement_that_comes_too_early_changes_nothing() -> None:
    worker = prefetching()
    assert not worker.prefetch.adapt(worker.now + FIRST_MEASURE_SECONDS / 2, 10_000)
    worker.measure(20, 2000)
    assert not worker.prefetch.adapt(worker.now + MEASURE_SECONDS / 2, worker.settled + 10_000)


def test_a_worker_that_starts_is_deep_at_once() -> None:
    worker = prefetching()
    assert worker.prefetch.adapt(worker.now + FIRST_MEASURE_SECONDS * 1.01, 100)
    assert worker.prefetch.depth >= 100


def test_the_prefetch_stays_until_something_is_settled() -> None:
    worker = prefetching()
    assert worker.measure(100, 0) == 0
    assert worker.prefetch.depth == 16
