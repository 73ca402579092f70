"""The ack tracker of a channel against a model of RabbitMQ: every tag is settled once, and only when it is due."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pika
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from callboard.middleware.message.delivery import Delivery, Tag
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.rabbitmq import acks as acks_module
from callboard.middleware.rabbitmq.acks import AckTracker
from tests.support.deliveries import RecordedAcks


class Channel:
    """RabbitMQ's side of a channel; naming a settled tag is an error there."""

    def __init__(self) -> None:
        self.unsettled: set[int] = set()
        self.acked: set[int] = set()
        self.nacked: set[int] = set()

    def deliver(self, tag: int) -> None:
        self.unsettled.add(tag)

    def basic_ack(self, tag: int, multiple: bool = False) -> None:  # noqa: FBT002 — pika's
        assert tag in self.unsettled, f"tag {tag} is settled: RabbitMQ would close the channel"
        tags = {t for t in self.unsettled if t <= tag} if multiple else {tag}
        self.acked |= tags
        self.unsettled -= tags

    def basic_nack(self, tag: int, *, requeue: bool) -> None:
        assert not requeue
        assert tag in self.unsettled, f"tag {tag} is settled: RabbitMQ would close the channel"
        self.nacked.add(tag)
        self.unsettled.discard(tag)


class Connection:
    """The connection's thread, which runs callbacks when the test says so."""

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.gone = False

    def add_callback_threadsafe(self, callback: Callable[[], None]) -> None:
        if self.gone:
            raise pika.exceptions.ConnectionWrongStateError
        self.callbacks.append(callback)

    def run(self) -> None:
        while self.callbacks:
            self.callbacks.pop(0)()


def delivery(tag: Tag = 1) -> Delivery:
    return Delivery(RecordedAcks(), tag, None)


def a_tracker() -> tuple[AckTracker, Channel, Connection]:
    channel, connection = Channel(), Connection()
    return AckTracker(cast("Any", connection), cast("Any", channel)), channel, connection


class TrackerMachine(RuleBasedStateMachine):
    """Deliveries, releases in any order and from any thread, time passing, a closing."""

    tags: Bundle[int] = Bundle("tags")
    parts: Bundle[tuple[int, int]] = Bundle("parts")

    def __init__(self) -> None:
        super().__init__()
        self.acks, self.channel, self.connection = a_tracker()
        self.now = 1000.0
        self.last = 0
        self.may_ack: set[int] = set()
        self.may_nack: set[int] = set()
        self.carried: dict[int, set[int]] = {}

    @rule(target=tags, count=st.integers(1, 6))
    def deliver(self, count: int) -> Any:
        tags = range(self.last + 1, self.last + count + 1)
        self.last += count
        for tag in tags:
            self.channel.deliver(tag)
            self.acks.enter(tag, [delivery(tag)])
        return multiple(*tags)

    @rule(target=parts, count=st.integers(2, 4))
    def deliver_many(self, count: int) -> Any:
        """One delivery that carries them all."""
        self.last += 1
        self.channel.deliver(self.last)
        self.acks.enter(self.last, [delivery((self.last, place)) for place in range(count)])
        self.carried[self.last] = set(range(count))
        return multiple(*((self.last, place) for place in range(count)))

    @rule(some=st.lists(parts, min_size=1, max_size=5))
    def release_parts(self, some: list[tuple[int, int]]) -> None:
        """In any order, some of them twice: the delivery is settled with the last."""
        for tag, place in some:
            self.carried[tag].discard(place)
            if not self.carried[tag]:
                self.may_ack.add(tag)
        self.acks.release(some, [])

    @rule(
        acks=st.lists(consumes(tags), max_size=5, unique=True), nacks=st.lists(consumes(tags), max_size=2, unique=True)
    )
    def release(self, acks: list[int], nacks: list[int]) -> None:
        self.may_ack |= set(acks)
        self.may_nack |= set(nacks)
        self.acks.release(acks, nacks)

    @rule(tag=tags)
    def release_twice(self, tag: int) -> None:
        """A message and its copy may both name it."""
        self.may_ack.add(tag)
        self.acks.release([tag], [])
        self.acks.release([tag], [])

    @rule()
    def serve(self) -> None:
        self.connection.run()

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.2]))
    def flush(self, seconds: float) -> None:
        self.now += seconds
        self.acks.flush(self.now)

    @invariant()
    def settled_only_what_is_due(self) -> None:
        assert self.channel.acked <= self.may_ack
        assert self.channel.nacked <= self.may_nack
        assert not self.channel.acked & self.channel.nacked

    @invariant()
    def nothing_is_lost_sight_of(self) -> None:
        assert self.channel.unsettled == set(self.acks._open) | set(self.acks._due)
        assert self.acks.held == sum(self.acks._open.values()) == len(self.acks.deliveries())

    def teardown(self) -> None:
        self.connection.run()
        self.acks.flush(self.now, all_of_it=True)
        released = self.may_ack | self.may_nack
        assert self.channel.acked | self.channel.nacked == released
        assert self.channel.unsettled == set(range(1, self.last + 1)) - released


TestTracker = pytest.mark.filterwarnings("default")(TrackerMachine.TestCase)
TestTracker.settings = settings(max_examples=300, stateful_step_count=30, deadline=None)


def test_one_acknowledgement_covers_all_below_the_oldest_open_message() -> None:
    acks, channel, connection = a_tracker()
    calls: list[tuple[int, bool]] = []
    channel.basic_ack = lambda tag, multiple=False: calls.append((tag, multiple))  # type: ignore[method-assign]
    for tag in range(1, 101):
        acks.enter(tag, [delivery(tag)])
    acks.release([tag for tag in range(1, 101) if tag != 60], [])
    connection.run()
    assert calls[0] == (59, True)


def test_one_slow_message_does_not_hold_up_the_others_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    acks, channel, connection = a_tracker()
    for tag in range(1, 11):
        channel.deliver(tag)
        acks.enter(tag, [delivery(tag)])
    monkeypatch.setattr(acks_module, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    acks.release([2, 3], [])
    connection.run()
    assert channel.acked == set()
    acks.flush(1000.0 + acks_module.STRAGGLER_SECONDS * 1.5)
    assert channel.acked == {2, 3}


def test_a_delivery_of_a_dead_connection_is_stale_and_is_not_acknowledged() -> None:
    acks, channel, connection = a_tracker()
    delivered = delivery()
    channel.deliver(1)
    channel.deliver(2)
    acks.enter(1, [delivered])
    acks.enter(2, [delivery(2)])
    acks.release([1], [])
    acks.discard()
    connection.run()
    acks.release([1, 2], [])
    acks.flush(0, all_of_it=True)
    assert delivered.stale
    assert channel.unsettled == {1, 2}
    assert acks.deliveries() == []


def test_a_release_on_a_lost_connection_does_nothing() -> None:
    acks, _, connection = a_tracker()
    acks.enter(1, [delivery()])
    connection.gone = True
    acks.release([1], [])
    assert acks.dead


def test_open_deliveries_are_counted_from_a_tag_on() -> None:
    acks, channel, connection = a_tracker()
    assert (acks.newest, acks.open_deliveries()) == (0, 0)
    for tag, places in ((1, 1), (2, 3), (3, 1)):
        channel.deliver(tag)
        acks.enter(tag, [delivery((tag, place) if places > 1 else tag) for place in range(places)])
    acks.release([1, (2, 1)], [])
    connection.run()
    assert acks.newest == 3
    assert [acks.open_deliveries(tag) for tag in range(5)] == [2, 2, 1, 0, 0]


def test_only_messages_of_callboard_that_have_not_begun_are_given_back() -> None:
    acks, _, _ = a_tracker()
    stamp = Stamp(1, 0, 1)
    ours, begun, foreign, moved_back, batch = (Delivery(acks, tag, stamp) for tag in range(5))
    foreign.stamp, moved_back.was_dead, batch.mates = None, True, [cast("Any", None)]
    acks.wait([ours, begun, foreign, moved_back, batch])
    assert begun.begin()
    assert acks.returnable() == [ours.tag]
    assert acks.take([ours.tag, begun.tag]) == [ours]
    assert not ours.begin()
