"""What an actor takes, and what of an item does not fit it."""

import asyncio
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware.asyncio import AsyncIO

import callboard
from callboard.middleware.submission.actor_lookup import broker_of, own_signature, resolve, targets
from callboard.middleware.submission.item_encoding import BadItem, Lane, call_of, encode
from callboard.sql.pool import Conn
from callboard.sql.signature import Signature


def resize(photo: str, size: int = 5, *, quality: int = 90) -> None: ...
def only_by_name(*, photo: str) -> None: ...
def by_position(photo: str, /, size: int = 5) -> None: ...
def some(photo: str, *more: int, **named: int) -> None: ...
def named(photo: str, /, **more: int) -> None: ...
async def gently(photo: str) -> None: ...


def signature(function: Callable[..., Any]) -> Signature | None:
    broker = StubBroker()
    broker.add_middleware(AsyncIO())
    found = own_signature(dramatiq.actor(broker=broker)(function))
    # A worker announces it, and another process reads it.
    assert found is None or Signature.from_json(found.actor, found.as_json()) == found
    return found


@pytest.mark.parametrize(
    ("function", "item", "wrong"),
    [
        (resize, {"photo": 1}, None),
        (resize, {"photo": 1, "size": 2, "quality": 3}, None),
        (resize, [1, 2], None),
        (resize, "one", None),
        (resize, {"path;size": 1}, "resize has no argument 'path;size' and needs 'photo'"),
        (resize, {}, "resize needs 'photo'"),
        (resize, [], "resize needs 'photo'"),
        (resize, [1, 2, 3], "resize takes 2 arguments by position, not 3"),
        (only_by_name, 1, "only_by_name takes 0 arguments by position, not 1 and needs 'photo'"),
        (by_position, {"photo": 1}, "by_position has no argument 'photo' and needs 'photo'"),
        (by_position, [1], None),
        (some, [1, 2, 3], None),
        (some, {"photo": 1, "other": 2}, None),
        (some, {"other": 2}, "some needs 'photo'"),
        (named, {"photo": 1, "other": 2}, "named needs 'photo'"),  # the keyword is one of any
        (gently, {"photos": 1}, "gently has no argument 'photos' and needs 'photo'"),
    ],
)
def test_what_does_not_fit_is_named(function: Callable[..., Any], item: Any, wrong: str | None) -> None:
    found = signature(function)
    assert found is not None
    assert found.misfit(*call_of(item)) == wrong


def test_nothing_is_known_of_a_function_that_takes_what_it_gets() -> None:
    """It may stand for an actor that runs elsewhere, or give what it gets, and more, to another function."""

    @wraps(resize)
    def injects(*args: Any, **kwargs: Any) -> None:
        resize("a photo", *args, **kwargs)

    async def ask(client: str, photo: str) -> None: ...

    @wraps(ask)
    def runs(*args: Any, **kwargs: Any) -> None:
        asyncio.run(ask("a client", *args, **kwargs))

    def stub() -> None: ...
    def in_batches(items: list[Any]) -> None: ...

    assert [signature(one) for one in (injects, runs, stub, callboard.batch(in_batches))] == [None] * 4


@pytest.mark.parametrize(
    ("function", "by", "known"),
    [
        (resize, "photo", True), (resize, "quality", True), (resize, "1", True), (resize, "photos", False),
        (resize, "2", False), (some, "anything", True), (some, "9", True), (by_position, "photo", False),
    ],
)  # fmt: skip
def test_a_lane_goes_by_an_argument_that_the_actor_has(function: Callable[..., Any], by: str, known: bool) -> None:
    found = signature(function)
    assert found is not None
    if known:
        found.check_lane(by)
    else:
        with pytest.raises(
            ValueError, match=f"concurrency_by: {found.actor} has no argument '{by}'; it has ('photo'|0 \\(photo\\)), "
        ):
            found.check_lane(by)


@pytest.mark.parametrize(
    ("function", "by", "item", "given"),
    [
        (resize, "photo", {"photo": 1}, True), (resize, "photo", ["one"], False), (resize, "photo", "one", False),
        (resize, "0", ["one"], True), (resize, "0", "one", True), (resize, "0", {"photo": 1}, False),
        (resize, "quality", {"photo": 1}, True), (resize, "quality", ["one"], True), (resize, "1", ["one"], True),
        (some, "tenant", {"photo": 1, "tenant": 2}, True), (some, "tenant", {"photo": 1, "tennant": 2}, False),
        (some, "9", {"photo": 1}, False), (None, "photo", {"photo": 1}, True), (None, "photo", {"foto": 1}, False),
        (None, "0", ["one"], True), (None, "1", ["one"], False), (None, "photo", "one", False),
    ],
)  # fmt: skip
def test_an_item_that_gives_the_argument_of_its_lane_in_another_way_is_refused(
    function: Callable[..., Any] | None, by: str, item: Any, given: bool
) -> None:
    """All items would be one lane. One that leaves the argument to its default has that value's lane."""
    lane = Lane(by, None if function is None else signature(function))
    if given:
        encode(0, item, lane=lane)
    else:
        with pytest.raises(BadItem, match=f"item 0 has no argument '{by}' for concurrency_by"):
            encode(0, item, lane=lane)


def unasked(write: Callable[[Conn], Any]) -> Any:
    """The database, which nobody needs to ask of an actor of this process."""
    raise AssertionError


class Standing:
    """What flask-dramatiq gives in the place of an actor."""

    def __init__(self, actor: dramatiq.Actor[..., Any]) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actor, name)


def test_an_object_that_stands_for_an_actor_is_one() -> None:
    actor = dramatiq.actor(broker=(broker := StubBroker()), actor_name="photos")(resize)
    given: Any = Standing(actor)
    assert broker_of(given) is broker
    assert resolve(unasked, broker, given) == ("photos", "default")
    assert own_signature(given) == own_signature(actor)
    assert targets(unasked, broker, given, None, None) == {"completed": [{"actor": "photos", "queue": "default"}]}


def test_an_actor_that_is_a_class_takes_what_its_method_does() -> None:
    broker = StubBroker()

    class Resize(dramatiq.GenericActor):
        class Meta:
            actor = partial(dramatiq.actor, broker=broker)

        def perform(self, photo: str, size: int = 5) -> None: ...

    assert broker_of(Resize) is broker
    assert resolve(unasked, broker, Resize) == ("Resize", "default")
    assert targets(unasked, broker, Resize, [Resize], None) == {
        state: [{"actor": "Resize", "queue": "default"}] for state in ("completed", "failed")
    }
    found = own_signature(broker.actors["Resize"])
    assert found is not None
    assert found.positional == ("photo", "size")
    assert found.required == {"photo"}
