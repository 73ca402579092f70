"""How many items lie in each queue: enough for its workers, and no more."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.publish.backlog import MAX_BACKLOG_ITEMS, MIN_BACKLOG_ITEMS, QueueBacklog
from callboard.sql import timings


def emptied(times: int, now: float) -> QueueBacklog:
    """Of a queue that was filled, and emptied by its workers, so many times until `now`."""
    backlog = QueueBacklog()
    for _ in range(times):
        added = backlog.room(0, now)
        backlog.count_published(added, added, now)
    return backlog


@given(st.lists(st.integers(0, 50_000), max_size=50))
def test_a_queue_never_gets_more_than_its_target(depths: list[int]) -> None:
    backlog, now = QueueBacklog(), 0.0
    for depth in depths:
        now += 1
        room = backlog.room(depth, now)
        assert MIN_BACKLOG_ITEMS <= backlog.target_items <= MAX_BACKLOG_ITEMS
        assert 0 <= room <= max(backlog.target_items - depth, 0)
        assert (room == 0) == (backlog.full_until > now)


def test_the_target_grows_when_a_queue_is_emptied_and_shrinks_while_it_is_full() -> None:
    backlog = emptied(4, 0.0)
    assert backlog.target_items == MIN_BACKLOG_ITEMS * 16
    for _ in range(100):
        backlog.room(backlog.target_items, 0.0)
    assert backlog.target_items == MIN_BACKLOG_ITEMS


def test_the_target_does_not_grow_when_nothing_was_published_for_long() -> None:
    """The queue is empty since there was nothing to publish, or since the messages of a cancelled job left at once."""
    backlog = QueueBacklog()
    assert backlog.room(0, 0.0) == 2 * MIN_BACKLOG_ITEMS
    backlog.count_published(50, 50, 0.0)
    for _ in range(3):
        backlog.room(0, 1.0)
    assert backlog.target_items == 2 * MIN_BACKLOG_ITEMS


def test_the_target_does_not_grow_by_a_few_messages_again_and_again() -> None:
    """A web app sends one from time to time, and they leave the queue at once."""
    backlog = QueueBacklog()
    for second in range(100):
        backlog.room(0, float(second) / 10)
        backlog.count_published(1, 1, float(second) / 10)
    assert backlog.target_items <= 2 * MIN_BACKLOG_ITEMS


def test_the_target_is_forgotten_when_nothing_was_published_for_a_while() -> None:
    """The next items may be slow ones."""
    assert emptied(6, 1.0).room(0, 3.0) == MIN_BACKLOG_ITEMS
    assert emptied(6, 1.0).room(0, 1.5) == MIN_BACKLOG_ITEMS * 64


def test_a_new_job_gets_a_small_share_of_the_target_that_others_left() -> None:
    backlog = emptied(6, 1.0)
    assert backlog.room(0, 1.1, new_job=True) == MIN_BACKLOG_ITEMS * 8
    backlog.count_published(400, 400, 1.1)
    for hundredth in range(100):  # its items are slow
        backlog.room(400 - hundredth // 5, 1.1 + hundredth / 100)
    assert backlog.target_items < MIN_BACKLOG_ITEMS * 4


def test_each_job_that_a_process_submits_gets_as_much_as_the_first() -> None:
    backlog = QueueBacklog()
    for minute in range(3):
        assert backlog.room(0, 60.0 * minute, new_job=True) == 2 * MIN_BACKLOG_ITEMS
        backlog.count_published(60, 3, 60.0 * minute)


def test_the_target_grows_on_a_machine_that_does_all_of_it_slowly() -> None:
    backlog, now = QueueBacklog(), 0.0
    for _ in range(6):
        added = backlog.room(0, now)
        backlog.count_published(added, added, now + 1.0)
        now += 2.0
    assert backlog.target_items >= MIN_BACKLOG_ITEMS * 32


@given(st.integers(MIN_BACKLOG_ITEMS, MAX_BACKLOG_ITEMS), st.integers(0, 50_000))
def test_a_queue_that_is_not_full_gets_something(target: int, depth: int) -> None:
    """`is_full`, asked between two rounds, and `room`, asked in a round, agree."""
    backlog = QueueBacklog(target)
    if not backlog.is_full(depth):
        assert backlog.room(depth, 1.0) > 0
        assert backlog.full_until == 0.0


def test_a_queue_of_chunks_is_measured_in_items() -> None:
    backlog = QueueBacklog()
    for _ in range(20):
        backlog.count_published(50, 1, -math.inf)
    assert backlog.items_per_message == pytest.approx(50, rel=0.01)
    assert backlog.room(3, 0.0) < MIN_BACKLOG_ITEMS
    assert backlog.room(4, 0.0) <= MIN_BACKLOG_ITEMS // 4 or backlog.full_until


def test_a_queues_first_items_fit_into_one_window() -> None:
    assert timings.PUBLISH_WINDOW_ITEMS >= MIN_BACKLOG_ITEMS
