"""What an attempt's end means. Pure: everything it needs is in the `Ending`."""

import math
import os
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from dramatiq.middleware import TimeLimitExceeded

from callboard.sql.rows import Failure, Kind, Retry, Settled

#: Characters kept of an error's message and of its traceback.
MESSAGE_LIMIT = 4_000
TRACEBACK_LIMIT = 16_000
#: Characters of an error's type and of its place, by which errors are grouped: an index holds them.
NAME_LIMIT = 300
#: Bytes that a result may have as JSON.
RESULT_LIMIT = 262_144
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

    state: Settled
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
    limit = int(os.environ.get("CALLBOARD_RESULT_LIMIT", RESULT_LIMIT))
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


def describe(error: BaseException | None) -> Failure:
    """An exception as it is kept: its type, message, where it was raised, and its traceback, cut from the front."""
    if error is None:
        return Failure("failed", "Rejected", "the message was failed by a middleware before the actor ran")
    kind: Kind = "timed_out" if isinstance(error, TimeLimitExceeded) else "failed"
    text = clean("".join(_format(error)), limit=None)
    return Failure(
        kind,
        clean(_type_name(error), NAME_LIMIT),
        clean(_message(error)),
        _place(error),
        text[-TRACEBACK_LIMIT:],
        len(text),
    )


def clean(text: str, limit: int | None = MESSAGE_LIMIT) -> str:
    """Text as PostgreSQL can store it: no NUL, no half of a surrogate pair; at most `limit` characters."""
    if limit is not None:
        text = text[: limit + 1]  # what is replaced below only grows
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def _type_name(error: BaseException) -> str:
    module = type(error).__module__
    return (
        type(error).__qualname__
        if module in ("builtins", "__main__")
        else f"{module}.{type(error).__qualname__}"
    )


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 — whatever its __str__ raises
        return f"(its text can't be had: {type(broken).__name__} in __str__)"


def _format(error: BaseException) -> list[str]:
    try:
        return traceback.format_exception(error, limit=-50)
    except Exception:  # noqa: BLE001 — likewise
        return traceback.format_tb(error.__traceback__, limit=-50)


def _place(error: BaseException) -> str:
    step = error.__traceback__
    if step is None:
        return ""
    while step.tb_next is not None:
        step = step.tb_next
    code = step.tb_frame.f_code
    return clean(
        f"{'/'.join(Path(code.co_filename).parts[-2:])}:{step.tb_lineno} in {code.co_name}", NAME_LIMIT
    )
