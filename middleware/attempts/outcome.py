"""Decides what an attempt's end means for its item."""

import math
from typing import Any, NamedTuple

import msgspec

from callboard.middleware.message.failure import clean, describe
from callboard.sql import settings
from callboard.sql.rows import Failure, OutcomeState, Retry

#: Seconds before the next attempt when Dramatiq could not schedule it.
LOST_RETRY_SECONDS = 15.0


class ResultNotStored(ValueError):
    """An actor's return value can't be stored as the item's result."""


class Outcome(NamedTuple):
    """The item's new state, why if it did not succeed, its next attempt, and its result as JSON."""

    state: OutcomeState
    failure: Failure | None = None
    retry: Retry | None = None
    result: str | None = None


SUCCEEDED = Outcome("succeeded")


def decide(
    *, returned: bool = False, result: Any = None, skip: str | None = None, exception: BaseException | None = None,
    failed: bool = False, retry: Retry | None = None, has_retries: bool = True,
) -> Outcome:  # fmt: skip
    """Decide what an attempt's end means. The first that holds: returned → succeeded, skipped → skipped (or failed),
    failed → failed, else retrying.

    `returned`: the actor returned `result`, whatever came after. `skip`: the reason of a SkipMessage. `failed`:
    Dramatiq gave the message up. `retry`: the retry that Dramatiq scheduled. `has_retries`: the broker has the Retries
    middleware, so an exception with neither `failed` nor `retry` means that a retry was lost.
    """
    if returned:
        return SUCCEEDED if result is None else _with_result(result)
    if skip is not None:
        if failed:
            return Outcome("failed", Failure("timed_out", "SkipMessage", clean(skip)))
        return Outcome("skipped", Failure("skipped", "Skip", clean(skip)))
    failure = describe(exception)
    if failed or (retry is None and not has_retries):
        return Outcome("failed", failure)
    return Outcome("retrying", failure, retry or Retry(LOST_RETRY_SECONDS))


def _with_result(result: Any) -> Outcome:
    try:
        return Outcome("succeeded", result=encode_result(result))
    except Exception as error:  # noqa: BLE001 — the actor's own object may raise anything
        return Outcome("failed", describe(ResultNotStored(f"its result can't be stored: {error}")))


def encode_result(result: Any) -> str:
    """Return a return value as JSON text; raises TypeError if it has no JSON form, ResultNotStored over the limit."""
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
    """Raise ResultNotStored for a NaN or an infinity in it: msgspec writes them as null, which is another result."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ResultNotStored(f"{value} is no number in JSON")
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        _refuse_infinite(part)
