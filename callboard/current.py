"""What an actor can do while it runs an item: skip it, report a step and progress, ask which item it is."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import dramatiq
from dramatiq.middleware import SkipMessage

from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.failure import clean
from callboard.sql.rows import Progress

#: The most characters of a step that are kept.
STEP_CHARACTERS = 500


class Skip(SkipMessage):
    """Raise it in an actor to end its item as `skipped`, with a reason. The item has not failed, and is not retried.

    raise callboard.Skip("the customer has left")
    """


class NotInAnItem(RuntimeError):
    """A function that needs a tracked item was called where none runs."""


@dataclass(frozen=True, slots=True)
class Current:
    """The item that runs: the id of its `job`, its number `item` in the job from 0, and the `attempt` at it from 1."""

    job: int
    item: int
    attempt: int
    _attempt: Attempt

    @property
    def cancelled(self) -> bool:
        """Whether the job was stopped since the item began, known within about a second. A long item can end early."""
        return self._attempt.cancelled


def current() -> Current:
    """Return the item that this actor runs; raises NotInAnItem outside a tracked actor."""
    attempt = _attempt("current()")
    return Current(attempt.job, attempt.item, attempt.number, attempt)


def step(text: str) -> None:
    """Report what is being done with the item, at most 500 characters; shown within a second on the item and its job.

    It costs next to nothing: only the latest text is written, ten times a second at most. Raises NotInAnItem outside a
    tracked actor.
    """
    _attempt("step()").step = clean(str(text), STEP_CHARACTERS)


def progress(done: float, total: float | None = None) -> None:
    """Report how far the item is: `done` of `total` in any unit, or of an unknown total; shown within a second.

    It is as cheap as `step`. `total` may be an estimate: `done` beyond it is shown as all of it. A new attempt starts
    anew. Raises ValueError unless both are numbers from 0 (`total` above 0), and NotInAnItem outside a tracked actor.
    """
    attempt = _attempt("progress()")
    whole = None if total is None else _number("total", total)
    if whole == 0:
        raise ValueError("total must be above 0, or None where nobody knows it; not 0")
    part = _number("done", done)
    attempt.progress = Progress(part if whole is None else min(part, whole), whole)


def _number(name: str, given: object) -> float:
    if not isinstance(given, bool) and isinstance(given, Real):
        try:
            number = float(given)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number >= 0:
            return number
    raise ValueError(f"{name} must be a number from 0, not {given!r:.100}")


def send_now(message: Any) -> Any:
    """Send a message at once, whatever becomes of the item that runs; return the message as it was sent.

    What an actor sends by `.send()` instead goes out only when its item succeeds. The message belongs to its actor's
    standing job of the day, or to the job of the `callboard.job` block that it is sent in.
    """
    token = current_attempt.set(None)
    try:
        return dramatiq.get_broker().enqueue(message)
    finally:
        current_attempt.reset(token)


def _attempt(function: str) -> Attempt:
    attempt = current_attempt.get()
    if attempt is None or attempt.ended:
        raise NotInAnItem(f"{function} was called outside a tracked actor")
    return attempt
