"""What an attempt's end means. Pure: everything it needs is in the `Ending`."""

import traceback
from dataclasses import dataclass
from pathlib import Path

from dramatiq.middleware import TimeLimitExceeded

from callboard.sql.rows import Failure, Kind, Retry, Settled

#: Characters kept of an error's message and of its traceback.
MESSAGE_LIMIT = 4_000
TRACEBACK_LIMIT = 16_000
#: Seconds after which an attempt is repeated whose retry could not be scheduled by Dramatiq.
LOST_RETRY_DELAY = 15.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as the hooks saw it.

    `returned`: the actor returned, whatever came after. `skip`: the reason of a SkipMessage. `failed`: Dramatiq gave
    the message up. `retry`: what Retries scheduled. `retries`: the broker has Retries, so an exception without either
    is a retry that was lost.
    """

    returned: bool = False
    skip: str | None = None
    exception: BaseException | None = None
    failed: bool = False
    retry: Retry | None = None
    retries: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state the item goes to, why when it did not simply succeed, and its next attempt when there is one."""

    state: Settled
    failure: Failure | None = None
    retry: Retry | None = None


def decide(ending: Ending) -> Outcome:
    """The first that holds: returned → succeeded; given up → failed; skipped → skipped; retry → retrying."""
    if ending.returned:
        return Outcome("succeeded")
    if ending.skip is not None:
        if ending.failed:
            return Outcome("failed", Failure("timed_out", "SkipMessage", clean(ending.skip)))
        return Outcome("skipped", Failure("skipped", "Skip", clean(ending.skip)))
    failure = describe(ending.exception)
    if ending.failed or (ending.retry is None and not ending.retries):
        return Outcome("failed", failure)
    return Outcome("retrying", failure, ending.retry or Retry(LOST_RETRY_DELAY))


def describe(error: BaseException | None) -> Failure:
    """An exception as it is kept: its type, message, where it was raised, and its traceback, cut from the front."""
    if error is None:
        return Failure("failed", "Rejected", "the message was failed by a middleware before the actor ran")
    kind: Kind = "timed_out" if isinstance(error, TimeLimitExceeded) else "failed"
    text = clean("".join(_format(error)), limit=None)
    return Failure(
        kind, clean(_type_name(error)), clean(_message(error)), _place(error), text[-TRACEBACK_LIMIT:], len(text)
    )


def clean(text: str, limit: int | None = MESSAGE_LIMIT) -> str:
    """Text as PostgreSQL can store it: no NUL, no half of a surrogate pair; at most `limit` characters."""
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def _type_name(error: BaseException) -> str:
    module = type(error).__module__
    return type(error).__qualname__ if module in ("builtins", "__main__") else f"{module}.{type(error).__qualname__}"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:
        return f"(its text can't be had: {type(broken).__name__} in __str__)"


def _format(error: BaseException) -> list[str]:
    try:
        return traceback.format_exception(error, limit=-50)
    except Exception:
        return traceback.format_tb(error.__traceback__, limit=-50)


def _place(error: BaseException) -> str:
    step = error.__traceback__
    if step is None:
        return ""
    while step.tb_next is not None:
        step = step.tb_next
    code = step.tb_frame.f_code
    return clean(f"{'/'.join(Path(code.co_filename).parts[-2:])}:{step.tb_lineno} in {code.co_name}")
