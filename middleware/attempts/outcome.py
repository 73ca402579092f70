"""What an attempt's end means. Pure: everything it needs is in the `Ending`."""

import math
from typing import Any, NamedTuple

import msgspec

from callboard.middleware.message.failure import clean, describe
from callboard.sql import settings
from callboard.sql.rows import Failure, OutcomeState, Retry

#: Seconds after which an attempt is repeated whose retry could not be scheduled by Dramatiq.
LOST_RETRY_DELAY = 15.0


class ResultNotStored(ValueError):
    """An actor returned what can't be kept as the item's result."""


class Ending(NamedTuple):
    """How an attempt ended, as the hooks saw it.

    `returned`: the actor returned `result`, whatever came after. `skip`: the reason of a SkipMessage. `failed`:
    Dramatiq gave the message up. `retry`: what Retries scheduled. `retries`: the broker has Retries,
    so an exception without either is a retry that was lost.
    """

    returned: bool = False
    result: Any = None
    skip: str | None = None
    exception: BaseException | None = None
    failed: bool = False
    retry: Retry | None = None
    retries: bool = True


class Outcome(NamedTuple):
    """The state the item goes to, why when it did not simply succeed, its next attempt, and its result as JSON."""

    state: OutcomeState
    failure: Failure | None = None
    retry: Retry | None = None
    result: str | None = None


SUCCEEDED = Outcome("succeeded")


def decide(ending: Ending) -> Outcome:
    """The first that holds: returned → succeeded; given up → failed; skipped → skipped; retry → retrying."""
    if ending.returned:
        return SUCCEEDED if ending.result is None else _with_result(ending.result)
    if ending.skip is not None:
        if ending.failed:
            return Outcome("failed", Failure("timed_out", "SkipMessage", clean(ending.skip)))
        return Outcome("skipped", Failure("skipped", "Skip", clean(ending.skip)))
    failure = describe(ending.exception)
    if ending.failed or (ending.retry is None and not ending.retries):
        return Outcome("failed", failure)
    return Outcome("retrying", failure, ending.retry or Retry(LOST_RETRY_DELAY))


def _with_result(result: Any) -> Outcome:
    try:
        return Outcome("succeeded", result=encode_result(result))
    except Exception as error:  # noqa: BLE001 — it is the actor's own object that is looked at
        return Outcome("failed", describe(ResultNotStored(f"its result can't be stored: {error}")))


def encode_result(result: Any) -> str:
    """A return value as JSON text; raises TypeError for what has no JSON form, ResultNotStored over the limit."""
    text = msgspec.json.encode(result)
    if b"null" in text:
        _refuse_infinite(msgspec.to_builtins(result))
    limit = settings.RESULT_LIMIT.get()
    if len(text) > limit:
        raise ResultNotStored(
            f"{len(text):,} bytes as JSON, and {limit:,} are allowed (CALLBOARD_RESULT_LIMIT)"
        )
    return text.decode()


def _refuse_infinite(value: Any) -> None:
    """Of what JSON has no number for, msgspec makes a null: another result than the actor gave."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultNotStored(f"{value} is no number in JSON")
    for part in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    ):
        _refuse_infinite(part)
