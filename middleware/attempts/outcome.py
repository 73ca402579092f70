"""Decides what an attempt's end means for its item: which state, and whether it gets another attempt."""

import json
from typing import Any, NamedTuple

import msgspec
from dramatiq.middleware import SkipMessage
from dramatiq.threading import Interrupt

from callboard.middleware.message.failure import clean, describe
from callboard.sql import settings
from callboard.sql.limits import check_seconds
from callboard.sql.rows import Failure, OutcomeState, Retry

#: Seconds before the next attempt when Dramatiq could not schedule it.
LOST_RETRY_SECONDS = 15.0
#: The attempt from which on a lost retry is none: a hook that fails each time would have the item run for ever.
LOST_RETRY_ATTEMPTS = 3


class ResultNotKept(ValueError):
    """An actor's return value can't be kept as the item's result."""


class Postpone(SkipMessage):
    """Raise it in an actor to have its item tried again after `seconds`: a remote API says 429, and when to come back.

    raise callboard.Postpone(30, "the API allows no more calls")

    The attempt has not failed: it counts neither towards the actor's `max_retries` nor as a retry or an error of the
    job, and sends and saves nothing. No thread waits meanwhile. As it is a SkipMessage, Dramatiq's Retries leave it
    alone. Raises ValueError for seconds that are no number from 0.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        check_seconds("Postpone", seconds)
        super().__init__(reason)
        self.seconds = float(seconds)


class Outcome(NamedTuple):
    """The item's new state, why if it did not succeed, its next attempt, its result as JSON, or why it is not kept."""

    state: OutcomeState
    failure: Failure | None = None
    retry: Retry | None = None
    result: str | None = None
    unkept: str | None = None


SUCCEEDED = Outcome("succeeded")


def decide(
    *, returned: bool = False, result: Any = None, skip: str | None = None, exception: BaseException | None = None,
    failed: bool = False, retry: Retry | None = None, has_retries: bool = True, strict: bool = False,
    postponed: bool = False, number: int = 1, result_limit: int = int(settings.RESULT_LIMIT.default),
) -> Outcome:  # fmt: skip
    """Decide what an attempt's end means. The first that holds: returned → succeeded, skipped → skipped (or failed),
    failed → failed, else retrying.

    `returned`: the actor returned `result`, whatever came after. `skip`: the reason of a SkipMessage. `failed`:
    Dramatiq gave the message up. `retry`: the retry that Dramatiq scheduled. `has_retries`: Dramatiq may retry the
    message, so an exception with neither `failed` nor `retry` means that a retry was lost. `strict`: an item whose
    result can't be kept fails. `postponed`: by a SkipMessage that says so, until the time of `retry`. `number`: of the
    attempt, from 1. `result_limit`: the most bytes of the result as JSON.
    """
    if returned:
        return SUCCEEDED if result is None else _with_result(result, result_limit, strict=strict)
    if skip is not None:
        if failed:
            return Outcome("failed", Failure("timed_out", "SkipMessage", clean(skip)))
        if postponed:
            return Outcome("retrying", Failure("postponed", "Postpone", clean(skip)), retry)
        return Outcome("skipped", Failure("skipped", "Skip", clean(skip)))
    failure = describe(exception)
    last = not has_retries or (number >= LOST_RETRY_ATTEMPTS and not isinstance(exception, Interrupt))
    if failed or (retry is None and last):
        return Outcome("failed", failure)
    return Outcome("retrying", failure, retry or Retry(LOST_RETRY_SECONDS))


def _with_result(result: Any, limit: int, *, strict: bool) -> Outcome:
    try:
        return Outcome("succeeded", result=encode_result(result, limit))
    except BaseException as error:  # noqa: BLE001 — the actor's own object may raise anything
        failure = describe(error)
    why = failure.message or failure.error_type
    if strict:
        return Outcome("failed", describe(ResultNotKept(f"its result can't be kept: {why}")))
    return Outcome("succeeded", unkept=why)


def encode_result(result: Any, limit: int) -> str:
    """Return a return value as JSON text; raises TypeError or ValueError if it has no JSON form, or more than `limit`
    bytes.

    msgspec is fast, and knows times and dataclasses; Python's own tool knows subclasses of text and numbers, the keys
    True and None, and half a surrogate pair, and refuses NaN, which msgspec writes as null.
    """
    try:
        encoded = msgspec.json.encode(result)
    except Exception:  # noqa: BLE001 — the other tool decides
        encoded = _dumps(result).encode()
    else:
        if len(encoded) <= limit and b"null" in encoded:
            encoded = _dumps(msgspec.to_builtins(result)).encode()
    if len(encoded) > limit:  # it may have gigabytes, so no copy is made of it
        raise ResultNotKept(f"{len(encoded):,} bytes as JSON, and {limit:,} are allowed (CALLBOARD_RESULT_LIMIT)")
    return encoded.decode()


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), default=msgspec.to_builtins)
