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
    """Declare that an actor takes a list of items, for example to call a remote API with batches. Put it below
    ``@dramatiq.actor``, and submit with `chunk`.

    The list has each item as it was submitted; an item that is retried, or was sent singly, comes in a list of one. The
    function returns None, or a list with each item's result or exception: a `Skip` skips that item, any other exception
    fails it, and the actor's retries apply. An exception that the function raises is the outcome of all items. Its
    sends are published if one of its items succeeds or is skipped. Raises TypeError for an actor, an async function, or
    one that does not take one list.
    """
    _check(function)

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
                    _pass_sends(lead, lead.batch, outcomes)
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


def _check(function: Any) -> None:
    """Raise TypeError for what can't be a batch: see `batch`."""
    if not callable(function) or isinstance(function, dramatiq.Actor):
        raise TypeError(f"batch takes a function, not {function!r:.100}: put it below @dramatiq.actor")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is async: a batch must be a plain function")
    try:
        inspect.signature(function, follow_wrapped=False).bind([])
    except TypeError as error:
        raise TypeError(f"{function!r:.100} can't be a batch, which gets one argument, a list: {error}") from None
    except ValueError:
        pass  # a function of C code without a signature


def takes_batches(actor: dramatiq.Actor[..., Any] | None) -> bool:
    """Return whether an actor was declared with `batch`."""
    return getattr(getattr(actor, "fn", None), "batch", False)


@contextmanager
def _together(lead: Attempt | None) -> Iterator[list[MessageProxy]]:
    """Begin the messages of the lead's batch; yield those that may run. In the block, the lead is current."""
    if lead is None:
        yield []
        return
    begun: list[MessageProxy] = []
    refused: list[tuple[MessageProxy, Exception | None]] = []  # each with the error of the middleware that refused it
    try:
        _begin(lead.deliveries[0].mates, begun, refused)
        current_attempt.set(lead)
        yield begun
    finally:
        # Only here, after the call: Dramatiq removes the time limit of a thread when the first message ends in it.
        _end([mate for mate, _ in refused], [error for _, error in refused])
        current_attempt.set(lead)


def _begin(
    mates: list[MessageProxy], begun: list[MessageProxy], refused: list[tuple[MessageProxy, Exception | None]]
) -> None:
    """Begin messages as Dramatiq's worker does, and remove them from `mates`. If the time limit interrupts this, the
    messages that are left begin after the lead ends.
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
    """End messages as Dramatiq's worker does. An interrupt here does not change the outcomes."""
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
    """Return an instance of an exception's class, as `raise` makes it."""
    try:
        return kind()
    except Exception as error:  # noqa: BLE001 — the class may need arguments
        return error


def _pass_sends(lead: Attempt, batch: Sequence[Attempt], outcomes: Sequence[Any]) -> None:
    """Move the messages that the function sent, which the lead keeps, to an item that succeeds or is skipped, if there
    is one.

    Otherwise they would be dropped with a lead that fails, and the items that succeed would never send them again. An
    item without statements to save is preferred, because such a statement may fail the item.
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
    """Return an item as it was submitted: an object, a list of arguments, or a single argument."""
    if kwargs and not args:
        return kwargs
    return args[0] if len(args) == 1 and not kwargs else list(args)
