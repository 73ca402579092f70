"""Decides an attempt's outcome: the new state of its item, and whether the item gets another attempt."""

import json
from datetime import date, time, timedelta
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
#: From this attempt on a lost retry is a failure: with a hook that always fails, the item would run for ever.
LOST_RETRY_ATTEMPTS = 3


class ResultNotKept(ValueError):
    """An actor's return value can't be kept as the item's result."""


class Postpone(SkipMessage):
    """Raise it in an actor to retry its item after `seconds`, for example when a remote API answers 429 with a time.

    raise callboard.Postpone(30, "the API allows no more calls")

    The attempt does not count as failed: not towards the actor's `max_retries`, nor as a retry or an error of the job.
    Its sends and saves are dropped. No thread waits meanwhile. Dramatiq's Retries ignores it, because it is a
    SkipMessage. Raises ValueError unless `seconds` is a number from 0.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        check_seconds("Postpone", seconds)
        super().__init__(reason)
        self.seconds = float(seconds)


class Outcome(NamedTuple):
    """The item's new state, its failure unless it succeeded, its next attempt, its result as JSON, or why that is not
    kept.
    """

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
    """Return the outcome of an attempt. The first match decides: returned → succeeded, skipped → skipped (or failed),
    failed → failed, else retrying.

    `returned`: the actor returned `result`; errors after that are ignored. `skip`: the reason of a SkipMessage.
    `failed`: Dramatiq gave the message up. `retry`: the retry that Dramatiq scheduled. `has_retries`: Dramatiq may
    retry the message, so an exception with neither `failed` nor `retry` means that a retry was lost. `strict`: an item
    whose result can't be kept fails. `postponed`: the SkipMessage is a `Postpone`; the item waits until the time of
    `retry`. `number`: the attempt's number, from 1. `result_limit`: the most bytes of the result as JSON.
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
    """Return an actor's return value as JSON text. Raises TypeError or ValueError if it has no JSON form, and
    ResultNotKept for more than `limit` bytes.

    msgspec is fast, and encodes times and dataclasses. Python's `json` encodes subclasses of str and numbers, the keys
    True and None, and half a surrogate pair; it refuses NaN, which msgspec writes as null.
    """
    try:
        encoded = msgspec.json.encode(result, enc_hook=_plain)
    except Exception:  # noqa: BLE001 — Python's `json` decides
        encoded = _dumps(result).encode()
    else:
        if len(encoded) <= limit and b"null" in encoded:
            encoded = _dumps(_builtins(result)).encode()
    if len(encoded) > limit:  # checked before the text is copied: it may have gigabytes
        raise ResultNotKept(f"{len(encoded):,} bytes as JSON, and {limit:,} are allowed (CALLBOARD_RESULT_LIMIT)")
    return encoded.decode()


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_builtins)


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, enc_hook=_plain)


def _plain(value: Any) -> Any:
    """Return what stands for a subclass of times, as pandas, pendulum and freezegun have: msgspec knows only the
    classes themselves. Raises TypeError for anything else.
    """
    if isinstance(value, date | time) and value == value:  # noqa: PLR0124 — the NaT of pandas is not equal to itself
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    if isinstance(value, timedelta):
        return timedelta(value.days, value.seconds, value.microseconds)
    return msgspec.to_builtins(value)  # which raises
