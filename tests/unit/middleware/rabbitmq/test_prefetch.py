"""How deep a worker prefetches: enough to cover a flush, and few enough not to hoard slow items."""

import time
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.rabbitmq.prefetch import (
    COVER_SECONDS,
    FIRST_MEASURE_SECONDS,
    LOOK_SECONDS,
    MAX_EXTRA,
    MAX_PREFETCH,
    MEASURE_SECONDS,
    SHRINK_AFTER_MEASUREMENTS,
    STANDSTILL_LOOKS,
    Prefetch,
    Standstill,
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


def test_slow_commits_have_more_outcomes_instead_of_ever_fewer() -> None:
    """What a process has in hand is settled once in each commit, for which it waits with many others."""
    prefetch, settled = Prefetch(16, 8), 0
    now = prefetch._measured_at
    for n in range(100):
        now += MEASURE_SECONDS * 1.01
        settled += 0 if n % 3 else prefetch.depth
        prefetch.adapt(now, settled, commit_seconds=3 * MEASURE_SECONDS)
    assert prefetch.depth >= MAX_PREFETCH / 1.5
    for _ in range(2 * SHRINK_AFTER_MEASUREMENTS):
        now += MEASURE_SECONDS * 1.01
        settled += 1
        prefetch.adapt(now, settled, commit_seconds=60.0)
    assert prefetch.depth == wanted_prefetch(8, 0.0), "slow items are not hoarded, however long a commit took"


def test_slow_items_that_end_together_do_not_deepen_the_prefetch() -> None:
    """They would be hoarded, while another process is idle."""
    worker = prefetching(depth=10)
    for _ in range(4):
        assert worker.measure(1, 8 / MEASURE_SECONDS) == 0
        assert worker.measure(9, 0) == 0
    assert worker.prefetch.depth == 10


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
    assert worker.prefetch.depth == wanted_prefetch(8, 0.0) == 10


@given(THREADS, st.floats(0, 1e4), st.floats(1, 1000))
def test_messages_of_many_items_are_fewer_and_no_thread_lacks_one(threads: int, rate: float, carried: float) -> None:
    found = wanted_prefetch(threads, rate, carried)
    assert max(threads, 2) <= found <= wanted_prefetch(threads, rate)


def test_a_prefetch_counts_what_messages_carry() -> None:
    """As many items as one by one, though the messages are fewer."""
    prefetch = Prefetch(10, 8)
    now, seconds = prefetch._measured_at, MEASURE_SECONDS * 1.01
    prefetch.adapt(now + seconds, 4, 4 * 50)
    assert prefetch.depth == 10
    prefetch.adapt(now + 2 * seconds, 4 + 600, 4 * 50 + 600)
    assert prefetch.depth >= 600 / seconds * COVER_SECONDS


def test_a_prefetch_that_falls_back_grows_again_with_the_next_measurement() -> None:
    worker = prefetching()
    worker.measure(1, 4000)
    worker.prefetch.fall_back()
    assert worker.prefetch.depth == wanted_prefetch(8, 0.0)
    worker.measure(1, 4000)
    assert worker.prefetch.depth >= 4000 * COVER_SECONDS
    fixed = prefetching(400, threads=None)
    fixed.prefetch.fall_back()
    assert fixed.prefetch.depth == 400


def looks(standstill: Standstill, steps: list[tuple[float, int]]) -> list[bool]:
    now, found = 1000.0, []
    for seconds, admitted in steps:
        now += seconds
        found.append(standstill.look(now, admitted))
    return found


def test_a_process_stands_still_when_nothing_begins_for_a_while() -> None:
    due = LOOK_SECONDS * 1.01
    stands = looks(Standstill(), [(0, 5)] + [(due, 5)] * STANDSTILL_LOOKS + [(due, 6), (due, 6)])
    assert stands == [False] * STANDSTILL_LOOKS + [True, False, False]
    assert not any(looks(Standstill(), [(0, 5)] + [(LOOK_SECONDS / 2, 5)] * (2 * STANDSTILL_LOOKS - 1)))


def test_a_standstill_that_lasts_is_told_again_after_as_many_looks() -> None:
    due = LOOK_SECONDS * 1.01
    stands = looks(Standstill(), [(0, 5)] + [(due, 5)] * (3 * STANDSTILL_LOOKS))
    assert [n for n, stood in enumerate(stands) if stood] == [n * STANDSTILL_LOOKS for n in (1, 2, 3)]


def test_looks_that_come_late_do_not_count() -> None:
    """The process was frozen, or had no processor: its threads could not begin anything."""
    assert not any(looks(Standstill(), [(LOOK_SECONDS * 3, 5)] * 10))
