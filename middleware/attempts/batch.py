"""Actors that take their items in batches: one call for all that a message carries, and an outcome for each."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

import dramatiq
from dramatiq.middleware import Interrupt, SkipMessage

from callboard.middleware.message.attempt import Attempt, current_attempt


def batch(function: Callable[[list[Any]], Sequence[Any] | None]) -> Callable[..., Any]:
    """Declare that an actor takes a list of items, as for a remote API that takes batches: put it below
    ``@dramatiq.actor``, and submit with `chunk`.

    The list has each item as it was submitted; one that is tried again, or was sent by itself, comes as a list of one.
    It returns None, or for each item its result, or an exception: a `Skip` skips that item, any other is that item's
    failure, with the actor's retries. What it raises holds for all of them. Raises TypeError for an async function.
    """
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is async: a batch is a plain function")

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        lead = current_attempt.get()
        with _together(lead) as mates:
            items = [_item(args, kwargs), *(_item(mate.args, mate.kwargs) for mate in mates)]
            try:
                first, *rest = _outcomes(function(items), len(items))
            except BaseException as error:
                _end(mates, [error] * len(mates))
                raise
            _end(mates, rest)
        if isinstance(first, BaseException):
            raise first
        return first

    run.batch = True  # type: ignore[attr-defined]
    return run


def takes_batches(actor: dramatiq.Actor[..., Any] | None) -> bool:
    """Whether an actor was declared so."""
    return getattr(getattr(actor, "fn", None), "batch", False)


@contextmanager
def _together(lead: Attempt | None) -> Iterator[list[Any]]:
    """Take the lead's mates in hand; those that may run. In the block the lead is the current attempt."""
    if lead is None:
        yield []
        return
    taken: list[Any] = []
    others: list[tuple[Any, Exception | None]] = []  # and why they don't run
    try:
        _begin(lead.deliveries[0].mates, taken, others)
        current_attempt.set(lead)
        yield taken
    finally:
        # Not before: with the first message that ends on a thread Dramatiq takes the time limit off it.
        _end([mate for mate, _ in others], [why for _, why in others])
        current_attempt.set(lead)


def _begin(waiting: list[Any], taken: list[Any], others: list[tuple[Any, Exception | None]]) -> None:
    """As Dramatiq's worker begins a message. When the time is over meanwhile, those that were not begun come after the
    lead.
    """
    while waiting:
        mate = waiting[0]
        try:
            mate.broker.emit_before("process_message", mate)
        except Exception as error:  # noqa: BLE001 — a middleware's word on this one
            others.append((mate, error))
        except BaseException as error:
            if mate.delivery.attempt is not None:
                taken.append(waiting.pop(0))
            _end(taken, [error] * len(taken))
            raise
        else:
            if mate.failed:
                others.append((mate, None))
            else:
                taken.append(mate)
        waiting.pop(0)


def _end(mates: Iterable[Any], outcomes: Iterable[Any]) -> None:
    """As Dramatiq's worker ends a message. An interrupt that strikes here comes too late to change what happened."""
    for mate, outcome in zip(mates, outcomes, strict=True):
        current_attempt.set(mate.delivery.attempt)
        with suppress(Interrupt):
            try:
                _tell(mate, outcome)
            finally:
                _settle(mate)


def _tell(mate: Any, outcome: Any) -> None:
    if isinstance(outcome, SkipMessage):
        _skip(mate, outcome)
    elif isinstance(outcome, BaseException):
        mate.stuff_exception(outcome)
        mate.broker.emit_after("process_message", mate, exception=outcome)
    else:
        mate.broker.emit_after("process_message", mate, result=outcome)


def _settle(mate: Any) -> None:
    signal = "nack" if mate.failed else "ack"
    mate.broker.emit_before(signal, mate)
    mate.delivery.finish(failed=mate.failed)
    mate.broker.emit_after(signal, mate)
    mate.clear_exception()


def _skip(mate: Any, reason: SkipMessage) -> None:
    # Tracking looks for the reason where Dramatiq has it: in the exception being handled.
    try:
        raise reason
    except SkipMessage:
        mate.broker.emit_after("skip_message", mate)


def _outcomes(returned: Sequence[Any] | None, count: int) -> list[Any]:
    if returned is None:
        return [None] * count
    if not isinstance(returned, list | tuple) or len(returned) != count:
        size = f" of {len(returned)}" if isinstance(returned, list | tuple) else ""
        raise ValueError(
            f"a batch of {count} items gives a list of {count} outcomes, not a {type(returned).__name__}{size}"
        )
    return list(returned)


def _item(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An item as it was submitted: an object, a list of arguments, or the one argument."""
    if kwargs and not args:
        return kwargs
    return args[0] if len(args) == 1 and not kwargs else list(args)
