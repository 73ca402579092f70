"""The items of a batch are begun and ended as Dramatiq begins and ends messages."""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, MiddlewareError, TimeLimit, TimeLimitExceeded

import callboard
from callboard.middleware.hook_cache import HookCache
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.delivery import Delivery
from callboard.middleware.message.failure import describe
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.rabbitmq.consumer import RabbitmqMessage
from callboard.middleware.tracking import Returned, Tracking
from callboard.sql.rows import Claim
from tests.support.deliveries import RecordedAcks
from tests.support.process_parts import PlayedInFlight

Hook = Callable[[int], object]


class Hooks(Middleware):
    """A middleware of the app, with a hook before and after each item."""

    def __init__(self, before: Hook, after: Hook) -> None:
        self.before, self.after = before, after
        self.acknowledged: list[int] = []

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.args[0] < 0:
            message.fail()
        self.before(message.args[0])

    def after_process_message(self, broker: Any, message: Any, *, result: Any = None, exception: Any = None) -> None:
        self.after(message.args[0])

    def after_ack(self, broker: Any, message: Any) -> None:
        self.acknowledged.append(message.args[0])


class Batch:
    """A message with these items, begun as a worker thread begins it."""

    def __init__(self, *items: int, before: Hook = abs, after: Hook = abs, final: int | None = None) -> None:
        def claim(attempt: Attempt) -> Claim | None:
            return None if attempt.item == final else Claim("waiting", 1, 0, 1, taken=True, holder_alive=True)

        self.in_flight = PlayedInFlight(claim)
        self.limit = TimeLimit()
        self.hooks = Hooks(before, after)
        self.broker = StubBroker(middleware=[self.limit, self.hooks, Returned()])
        runtime: Any = SimpleNamespace(in_flight=self.in_flight)
        self.broker.middleware.insert(0, Tracking(runtime, HookCache(self.broker)))
        self.got: list[int] = []
        self.timed = False

        @dramatiq.actor(broker=self.broker)
        @callboard.batch
        def work(given: list[int]) -> None:
            self.timed = self.limit.manager.deadlines[threading.get_ident()] is not None  # type: ignore[union-attr]
            self.got += given

        self.work = work
        self.lead, *mates = (self._message(number, item) for number, item in enumerate(items))
        self.lead.delivery.mates = mates

    def _message(self, number: int, item: int) -> Any:
        stamp = Stamp(1, number, 1)
        message: dramatiq.Message[Any] = dramatiq.Message("default", "work", (item,), {}, {"callboard": stamp.option()})
        delivery = Delivery(RecordedAcks(), (1, number), stamp, redelivered=True)
        return RabbitmqMessage(self.broker, message, delivery)  # type: ignore[arg-type]

    def run(self) -> None:
        self.broker.emit_before("process_message", self.lead)
        try:
            self.work(*self.lead.args)
        finally:
            current_attempt.set(None)

    @property
    def ended(self) -> Sequence[tuple[int, str]]:
        """(item, state) of those that ended, without the lead."""
        return sorted((entry.event.item, entry.event.state) for entry in self.in_flight.ended)


def test_a_batch_that_is_called_as_a_function_takes_one_item() -> None:
    """As a test of an app calls it; the function of a list is there, too."""

    @dramatiq.actor(broker=StubBroker())
    @callboard.batch
    def add_up(pairs: list[list[int]]) -> list[int]:
        return [sum(pair) for pair in pairs]

    assert add_up([1, 2]) == 3
    assert add_up.fn.__wrapped__([[1, 1], [2, 2]]) == [2, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize("raised", [False, True])
def test_the_items_of_a_batch_fail_at_one_place(raised: bool) -> None:
    """Also the first, whose exception the batch raises: else the errors of a job are in two groups."""
    errors = [ValueError(number) for number in range(2)]

    def check(_: list[Any]) -> list[Any]:
        for error in errors if raised else []:
            with suppress(ValueError):
                raise error
        return errors[:1]

    with pytest.raises(ValueError, match="0"):
        callboard.batch(check)(0)
    places = [describe(error).place for error in errors]
    assert places[0] == places[1]
    assert places[0].endswith("in check") is raised


def test_an_item_that_a_middleware_fails_is_not_given_to_the_actor() -> None:
    batch = Batch(1, -2, 3)
    batch.run()
    assert batch.got == [1, 3]
    assert batch.ended == [(1, "failed"), (2, "succeeded")]


def test_an_item_that_a_middleware_refuses_is_tried_again_alone() -> None:
    def refuse(item: int) -> None:
        if item == 2:
            raise MiddlewareError("not now")

    batch = Batch(1, 2, 3, before=refuse)
    batch.run()
    assert batch.got == [1, 3]
    assert batch.ended == [(1, "failed"), (2, "succeeded")]  # failed: this broker has no Retries
    assert batch.hooks.acknowledged == [3]


def test_the_time_limit_holds_though_the_last_item_is_a_copy_that_does_not_run() -> None:
    """Dramatiq removes the time limit of a thread with the first message that ends there."""
    batch = Batch(1, 2, 3, final=2)
    batch.run()
    assert batch.got == [1, 2]
    assert batch.timed


def test_items_that_had_begun_end_when_the_time_limit_strikes_before_all_have() -> None:
    """In flight for ever they would never run again. The others run after the lead."""

    def late(item: int) -> None:
        if item == 3:
            raise TimeLimitExceeded

    batch = Batch(1, 2, 3, 4, before=late)
    with pytest.raises(TimeLimitExceeded):
        batch.run()
    assert batch.got == []
    assert batch.ended == [(1, "failed"), (2, "failed")]
    assert [mate.args for mate in batch.lead.delivery.mates] == [(4,)]


def test_an_interrupt_that_strikes_when_an_item_ends_leaves_none_in_flight() -> None:
    def late(item: int) -> None:
        if item == 2:
            raise TimeLimitExceeded

    batch = Batch(1, 2, 3, after=late)
    batch.run()
    assert batch.got == [1, 2, 3]
    assert batch.ended == [(1, "succeeded"), (2, "succeeded")]
