"""An exception as a record keeps it: type, message, place and traceback, cut to what a row holds."""

import traceback
from pathlib import Path

from dramatiq.middleware import TimeLimitExceeded

from callboard.sql.rows import AttemptKind, Failure

#: Characters kept of an error's message and of its traceback.
MESSAGE_CHARS = 4_000
TRACEBACK_CHARS = 16_000
#: Characters of an error's type and of its place, by which errors are grouped: an index holds them.
NAME_CHARS = 300


def describe(error: BaseException | None) -> Failure:
    """An exception as it is kept: its type, message, where it was raised, and its traceback, cut from the front."""
    if error is None:
        return Failure("failed", "Rejected", "the message was failed by a middleware before the actor ran")
    kind: AttemptKind = "timed_out" if isinstance(error, TimeLimitExceeded) else "failed"
    text = clean("".join(_format(error)), limit=None)
    return Failure(
        kind,
        clean(_type_name(error), NAME_CHARS),
        clean(_message(error)),
        _place(error),
        text[-TRACEBACK_CHARS:],
        len(text),
    )


def clean(text: str, limit: int | None = MESSAGE_CHARS) -> str:
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
        f"{'/'.join(Path(code.co_filename).parts[-2:])}:{step.tb_lineno} in {code.co_name}", NAME_CHARS
    )
