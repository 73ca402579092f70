"""How deep a worker prefetches and how much of a queue's work lies in RabbitMQ: enough, and no more."""

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.journal.journal import Entry, _dedupe
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.publish import chunking
from callboard.middleware.publish.backlog import DEEP, SHALLOW, QueueBacklog, fixed_depth
from callboard.middleware.publish.chunking import bundled
from callboard.middleware.rabbitmq import prefetch
from callboard.middleware.rabbitmq.prefetch import (
    FIRST_LOOK_SECONDS,
    LOOK_SECONDS,
    MAX_PREFETCH,
    SHRINK_AFTER_LOOKS,
    Prefetch,
    wanted_prefetch,
)
from callboard.sql import timings
from callboard.sql.rows import Event, OutcomeState, Outgoing

THREADS = st.integers(1, 600)
RATES = st.floats(0, 1e6)


@given(THREADS, RATES, RATES)
def test_faster_actors_get_a_deeper_prefetch(threads: int, one: float, other: float) -> None:
    slow, fast = sorted((one, other))
    assert wanted_prefetch(threads, slow) <= wanted_prefetch(threads, fast)


@given(THREADS, RATES)
def test_each_thread_has_something_to_do_and_nobody_hoards(threads: int, rate: float) -> None:
    found = wanted_prefetch(threads, rate)
    assert max(threads, 2) <= found <= max(MAX_PREFETCH, threads)


def test_slow_items_are_not_hoarded() -> None:
    assert wanted_prefetch(8, 1.0) <= 12


def test_fast_items_cover_what_a_flush_takes() -> None:
    assert wanted_prefetch(8, 4000) >= 4000 * prefetch.COVER_SECONDS


@dataclass
class Prefetching:
    """A prefetch, looked at as time passes."""

    prefetch: Prefetch
    now: float
    settled: int = 0

    def pass_(self, looks: int, rate: float) -> int:
        """How often it changed."""
        changes = 0
        for _ in range(looks):
            self.now += LOOK_SECONDS * 1.01  # rounding must not decide what is due
            self.settled += round(rate * LOOK_SECONDS)
            changes += self.prefetch.due(self.now, self.settled)
        return changes


def prefetching(depth: int = 16, threads: int | None = 8) -> Prefetching:
    prefetch = Prefetch(depth, threads)
    return Prefetching(prefetch, prefetch._looked)


def test_the_prefetch_grows_at_once_and_shrinks_after_a_while() -> None:
    worker = prefetching()
    assert worker.pass_(1, 4000) == 1
    deep = worker.prefetch.depth
    assert deep >= 4000 * prefetch.COVER_SECONDS
    assert worker.pass_(SHRINK_AFTER_LOOKS - 1, 0) == 0
    assert worker.prefetch.depth == deep
    assert worker.pass_(2, 0) == 1
    assert worker.prefetch.depth <= 12


def test_an_even_rate_leaves_the_prefetch_alone() -> None:
    worker = prefetching()
    worker.pass_(20, 2000)
    assert worker.pass_(200, 2000) == 0


def test_a_prefetch_that_was_set_by_hand_stays() -> None:
    assert prefetching(threads=None).pass_(100, 5000) == 0


def test_a_look_that_comes_too_early_changes_nothing() -> None:
    worker = prefetching()
    assert not worker.prefetch.due(worker.now + FIRST_LOOK_SECONDS / 2, 10_000)
    worker.pass_(20, 2000)
    assert not worker.prefetch.due(worker.now + LOOK_SECONDS / 2, worker.settled + 10_000)


def test_a_worker_that_starts_is_deep_at_once() -> None:
    worker = prefetching()
    assert worker.prefetch.due(worker.now + FIRST_LOOK_SECONDS * 1.01, 100)
    assert worker.prefetch.depth >= 100


def test_nothing_is_learnt_before_anything_is_settled() -> None:
    worker = prefetching()
    assert worker.pass_(100, 0) == 0
    assert worker.prefetch.depth == 16


@given(st.lists(st.integers(0, 50_000), max_size=50))
def test_a_queue_never_gets_more_than_its_level(depths: list[int]) -> None:
    backlog, now = QueueBacklog(), 0.0
    for depth in depths:
        now += 1
        room = backlog.room(depth, now)
        assert SHALLOW <= backlog.wanted <= DEEP
        assert 0 <= room <= max(backlog.wanted - depth, 0)
        assert (room == 0) == (backlog.full_until > now)


def test_a_queue_that_is_emptied_gets_more_and_one_left_full_gets_less() -> None:
    backlog = QueueBacklog()
    for _ in range(3):
        backlog.room(0, 0.0)
    deep = backlog.wanted
    assert deep == SHALLOW * 8
    for _ in range(100):
        backlog.room(backlog.wanted, 0.0)
    assert backlog.wanted == SHALLOW


@given(st.integers(SHALLOW, DEEP), st.integers(0, 50_000))
def test_a_queue_that_is_not_full_gets_something(wanted: int, depth: int) -> None:
    """What is asked while it rests, and what is found in its turn, agree."""
    backlog = QueueBacklog(wanted)
    if not backlog.full(depth):
        assert backlog.room(depth, 1.0) > 0
        assert backlog.full_until == 0.0


def test_a_first_look_at_an_empty_queue_finds_room() -> None:
    assert QueueBacklog().room(0, 0.0) >= SHALLOW


@pytest.mark.parametrize(("value", "depth"), [("", None), ("100", 100)])
def test_the_depth_can_be_fixed(monkeypatch: pytest.MonkeyPatch, value: str, depth: int | None) -> None:
    monkeypatch.setenv("CALLBOARD_QUEUE_DEPTH", value)
    assert fixed_depth() == depth


@pytest.mark.parametrize("value", ["many", "0", "-5", "1.5"])
def test_a_depth_that_makes_no_sense_is_said_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, value: str
) -> None:
    monkeypatch.setenv("CALLBOARD_QUEUE_DEPTH", value)
    assert fixed_depth() is None
    assert f"must be a whole number from 1, not {value!r}" in caplog.text


def test_a_queue_whose_messages_carry_many_is_measured_in_items() -> None:
    backlog = QueueBacklog()
    for _ in range(20):
        backlog.note(50, 1)
    assert backlog.carried == pytest.approx(50, rel=0.01)
    assert backlog.room(3, 0.0) < SHALLOW
    assert backlog.room(4, 0.0) <= SHALLOW // 4 or backlog.full_until


ITEMS = st.builds(
    Outgoing, st.just(1), st.just(0), st.integers(1, 2), st.just(0), st.booleans(), st.just("a"), st.just("q"),
    st.just("1-0"), st.binary(min_size=1, max_size=3), st.sampled_from([None, None, None, b"{}"]), st.none(),
)  # fmt: skip


@given(st.lists(ITEMS, max_size=40), st.integers(1, 7))
def test_runs_carry_every_item_once_in_order(items: list[Outgoing], chunk: int) -> None:
    items = [replace(out, item=n) for n, out in enumerate(items)]
    runs = [[replace(out, more=()), *out.more] for out in bundled(items, chunk)]
    assert [out for run in runs for out in run] == items
    assert all(len(run) <= chunk for run in runs)
    for run in runs:
        if len(run) > 1:
            assert all(out.attempt == 1 and out.options is None for out in run)
            assert len({out.suspect for out in run}) == 1


def test_a_run_is_not_larger_than_what_rabbitmq_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_BYTES", 100)
    out = Outgoing(
        1,
        0,
        1,
        0,
        suspect=False,
        actor="a",
        queue="q",
        message_id="1-0",
        args=b"x" * 40,
        options=None,
        sent_ms=None,
    )
    assert [1 + len(run.more) for run in bundled([replace(out, item=n) for n in range(7)], 50)] == [
        2,
        2,
        2,
        1,
    ]
    assert len(bundled([replace(out, item=n, args=b"x" * 400) for n in range(3)], 50)) == 3


def test_a_window_is_no_longer_than_what_a_successor_suspects() -> None:
    assert timings.PUBLISH_WINDOW_ITEMS >= SHALLOW


EVENT = Event(1, 1, 1, "succeeded", 0.0, 0.0, 1)


def entry(item: int, attempt: int, state: OutcomeState) -> Entry:
    """An attempt that ended."""
    return Entry(
        Attempt(1, item, attempt, [], {}),
        replace(EVENT, item=item, attempt=attempt, state=state),
        state == "failed",
    )


STATES: Any = st.sampled_from(["succeeded", "failed", "skipped", "retrying"])


@given(st.lists(st.builds(entry, st.integers(0, 3), st.integers(1, 3), cast("Any", STATES)), max_size=12))
def test_a_flush_has_one_event_an_item_and_success_goes_first(entries: list[Entry]) -> None:
    later: list[Entry] = []
    now = _dedupe(entries, later.append)
    assert len({e.event.item for e in now}) == len(now)
    assert {id(e) for e in entries} == {id(e) for e in now} | {id(e) for e in later}
    assert len(now) + len(later) == len(entries)
    for chosen in now:
        rivals = [e for e in later if e.event.item == chosen.event.item]
        if any(e.event.state == "succeeded" for e in rivals):
            assert chosen.event.state == "succeeded"
