"""What an actor may say and ask while it runs: skip, step, progress, what it has in hand."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import dramatiq
from dramatiq.middleware import SkipMessage

from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.failure import clean
from callboard.sql.rows import Progress

#: Characters kept of a step.
STEP_LIMIT = 500


class Skip(SkipMessage):
    """Raise it in an actor to end its item as `skipped`, with the reason; it is neither a failure nor retried."""


class NotInAnItem(RuntimeError):
    """Called where no tracked item is in hand."""


@dataclass(frozen=True, slots=True)
class Current:
    """The item in hand: its `job`'s id, its number, and the `attempt` at it, from 1. It is cancelled when its job was
    stopped: an actor that takes long may look and leave.
    """

    job: int
    item: int
    attempt: int
    _attempt: Attempt

    @property
    def cancelled(self) -> bool:
        """Whether the job was stopped meanwhile; known within about a second."""
        return self._attempt.cancelled


def current() -> Current:
    """What this actor has in hand; raises NotInAnItem outside a tracked actor."""
    attempt = _attempt("current()")
    return Current(attempt.job, attempt.item, attempt.number, attempt)


def step(text: str) -> None:
    """Say what the item in hand is being done now; seen within a second, on the item and on its job. Costs nothing:
    only the last text of a tenth of a second is written. Raises NotInAnItem outside a tracked actor.
    """
    _attempt("step()").step = clean(str(text), STEP_LIMIT)


def progress(done: float, total: float | None = None) -> None:
    """Say how far the item in hand is: `done` of `total` (None: nobody knows), in any unit; seen within a second, and
    as cheap as `step`. `total` may be an estimate: more than it is shown as all of it. A new attempt begins anew.

    Raises ValueError for what is no number from 0 (`total`: above 0), and NotInAnItem outside a tracked actor.
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
    """Send a message at once and for good, whatever becomes of the item in hand; see `Job` for where it is counted.

    What an actor sends by `.send()` goes only when its item succeeds.
    """
    with _set_aside():
        return dramatiq.get_broker().enqueue(message)


@contextmanager
def _set_aside() -> Iterator[None]:
    token = current_attempt.set(None)
    try:
        yield
    finally:
        current_attempt.reset(token)


def _attempt(asked: str) -> Attempt:
    attempt = current_attempt.get()
    if attempt is None or attempt.ended:
        raise NotInAnItem(f"{asked} was called outside a tracked actor")
    return attempt
