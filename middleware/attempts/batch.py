"""Actors that take their items in batches: one call for all items of a message, and an outcome for each."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.middleware import Interrupt, SkipMessage

from callboard.middleware.attempts.outcome import Postpone
from callboard.middleware.message.attempt import Attempt, current_attempt


def batch(function: Callable[[list[Any]], Sequence[Any] | None]) -> Callable[..., Any]:
    """Declare that an actor takes a list of items, as for a remote API that takes batches: put it below
    ``@dramatiq.actor``, and submit with `chunk`.

    The list has each item as it was submitted; an item that is tried again, or was sent singly, comes as a list of one.
    The function returns None, or a list with each item's result or exception: a `Skip` skips that item, any other
    exception fails it, with the actor's retries. An exception that it raises holds for all items. What it sends goes
    out if one of its items succeeds or is skipped. Raises TypeError for an async function.
    """
    if not callable(function):
        raise TypeError(f"batch takes a function, not {function!r:.100}: put it below @dramatiq.actor")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is async: a batch must be a plain function")

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        lead = current_attempt.get()
        with _together(lead) as mates:
            items = [_item(args, kwargs), *(_item(mate.args, mate.kwargs) for mate in mates)]
            if lead is not None:
                lead.batch = [lead, *(mate.delivery.attempt for mate in mates)]
            try:
                outcomes = _outcomes(function(items), len(items))
                if lead is not None and lead.batch is not None:
                    _hand_on(lead, lead.batch, outcomes)
            except BaseException as error:
                _end(mates, [error] * len(mates))
                raise
            first, *rest = outcomes
            _end(mates, rest)
        if isinstance(first, BaseException):
            raise first
        return first

    run.batch = True  # type: ignore[attr-defined]
    return run


def takes_batches(actor: dramatiq.Actor[..., Any] | None) -> bool:
    """Return whether an actor was declared with `batch`."""
    return getattr(getattr(actor, "fn", None), "batch", False)


@contextmanager
def _together(lead: Attempt | None) -> Iterator[list[MessageProxy]]:
    """Begin the messages of the lead's batch; yield those that may run. The lead is the current attempt then."""
    if lead is None:
        yield []
        return
    begun: list[MessageProxy] = []
    refused: list[tuple[MessageProxy, Exception | None]] = []  # and the error of the middleware that refused it
    try:
        _begin(lead.deliveries[0].mates, begun, refused)
        current_attempt.set(lead)
        yield begun
    finally:
        # Not before: Dramatiq takes the time limit off a thread with the first message that ends there.
        _end([mate for mate, _ in refused], [error for _, error in refused])
        current_attempt.set(lead)


def _begin(
    mates: list[MessageProxy], begun: list[MessageProxy], refused: list[tuple[MessageProxy, Exception | None]]
) -> None:
    """Begin messages as Dramatiq's worker does, and take them off `mates`. Those that are left when the time limit
    strikes are begun after the lead.
    """
    while mates:
        mate = mates[0]
        try:
            mate.broker.emit_before("process_message", mate)
        except Exception as error:  # noqa: BLE001 — a middleware may raise anything
            refused.append((mate, error))
        except BaseException as error:
            if mate.delivery.attempt is not None:
                begun.append(mates.pop(0))
            _end(begun, [error] * len(begun))
            raise
        else:
            if mate.failed:
                refused.append((mate, None))
            else:
                begun.append(mate)
        mates.pop(0)


def _end(mates: Iterable[MessageProxy], outcomes: Iterable[Any]) -> None:
    """End messages as Dramatiq's worker does. An interrupt that strikes here does not change what happened."""
    for mate, outcome in zip(mates, outcomes, strict=True):
        current_attempt.set(mate.delivery.attempt)
        with suppress(Interrupt):
            try:
                _emit_end(mate, outcome)
            finally:
                _acknowledge(mate)


def _emit_end(mate: MessageProxy, outcome: Any) -> None:
    if isinstance(outcome, SkipMessage):
        try:
            raise outcome  # Tracking reads the reason from the exception that is being handled
        except SkipMessage:
            mate.broker.emit_after("skip_message", mate)
    elif isinstance(outcome, BaseException):
        mate.stuff_exception(outcome)
        mate.broker.emit_after("process_message", mate, exception=outcome)
    else:
        mate.broker.emit_after("process_message", mate, result=outcome)


def _acknowledge(mate: MessageProxy) -> None:
    signal = "nack" if mate.failed else "ack"
    mate.broker.emit_before(signal, mate)
    mate.delivery.finish(failed=mate.failed)
    mate.broker.emit_after(signal, mate)
    mate.clear_exception()


def _outcomes(returned: Sequence[Any] | None, count: int) -> list[Any]:
    if returned is None:
        return [None] * count
    if not isinstance(returned, list | tuple) or len(returned) != count:
        size = f" of {len(returned)}" if isinstance(returned, list | tuple) else ""
        raise ValueError(
            f"a batch of {count} items gives a list of {count} outcomes, not a {type(returned).__name__}{size}"
        )
    return [_raised(one) if isinstance(one, type) and issubclass(one, BaseException) else one for one in returned]


def _raised(kind: type[BaseException]) -> BaseException:
    """Return what `raise` makes of the class of an exception."""
    try:
        return kind()
    except Exception as error:  # noqa: BLE001 — one that needs arguments
        return error


def _hand_on(lead: Attempt, batch: Sequence[Attempt], outcomes: Sequence[Any]) -> None:
    """Give what the function has sent, which the lead keeps, to an item that ends well, if there is one.

    Else it would be dropped with a lead that fails, and the others, which succeed, would never send it again. A
    statement that an item saves may fail, so rather to an item that saves none.
    """
    well = [one for one, outcome in zip(batch, outcomes, strict=True) if _ends_well(outcome)]
    keeper = min(well, key=lambda one: one.saves is not None, default=lead)
    if keeper is not lead:
        for message in lead.take_sent():
            keeper.add_child(message)


def _ends_well(outcome: Any) -> bool:
    return not isinstance(outcome, BaseException) or (
        isinstance(outcome, SkipMessage) and not isinstance(outcome, Postpone)
    )


def _item(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An item as it was submitted: an object, a list of arguments, or the one argument."""
    if kwargs and not args:
        return kwargs
    return args[0] if len(args) == 1 and not kwargs else list(args)
