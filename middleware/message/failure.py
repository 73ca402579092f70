"""Turns an exception into the failure that is stored: type, message, place and traceback, each cut to its limit."""

import re
import sys
import traceback
from pathlib import Path
from types import CodeType
from typing import Literal

from dramatiq.middleware import TimeLimitExceeded

from callboard.sql.rows import Failure

#: The most characters of an error's message and of its traceback.
MESSAGE_CHARS = 4_000
TRACEBACK_CHARS = 16_000
#: The most characters of an error's type and of its place: both are in an index.
NAME_CHARS = 300
#: Hexadecimal ids, and numbers of two digits or more, in the name of a class.
_NUMBERS = re.compile("(?=[a-fA-F]*[0-9])[0-9a-fA-F]{8,}|[0-9]{2,}")
#: The module that raises the exception that an actor returned for the first item of a batch.
RAISES_FOR_ACTORS = "callboard.middleware.attempts.batch"


def describe(error: BaseException | None) -> Failure:
    """Return the failure of an exception; `error` None: a middleware failed the message. A long traceback loses its
    start.

    Raises nothing, whatever the exception's own code raises: a SystemExit would end a worker's thread.
    """
    if error is None:
        return Failure("failed", "Rejected", "the message was failed by a middleware before the actor ran")
    try:
        return _describe(error)
    except BaseException as broken:  # noqa: BLE001 — see above
        return Failure("failed", "Unknown", f"an error that can't be described: {object.__repr__(broken)}")


def text_of(error: BaseException) -> str:
    """Return the text of an exception in a form that can be stored. Raises nothing, like `describe`."""
    try:
        return clean(str(error)) or ("its time limit passed" if isinstance(error, TimeLimitExceeded) else "")
    except BaseException as broken:  # noqa: BLE001 — see above
        return f"(no text: {type(broken).__name__} in __str__)"


def _describe(error: BaseException) -> Failure:
    kind: Literal["timed_out", "failed"] = "timed_out" if isinstance(error, TimeLimitExceeded) else "failed"
    text = clean("".join(_format(error)), limit=None)
    type_name = clean(_type_name(error), NAME_CHARS)
    return Failure(kind, type_name, text_of(error), _place(error), text[-TRACEBACK_CHARS:], len(text))


def clean(text: str, limit: int | None = MESSAGE_CHARS) -> str:
    """Return a text as PostgreSQL can store it: no NUL, no half surrogate pair, at most `limit` characters."""
    if limit is not None:
        text = text[: limit + 1]  # the replacements below only lengthen it
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    return text if limit is None or len(text) <= limit else text[: limit - 1] + "…"


def _type_name(error: BaseException) -> str:
    """Return the name of an error's class. In the name of a class that its module does not have, numbers are replaced:
    an app may make a class for each error, and each would have a group of its own.
    """
    module, name = type(error).__module__, type(error).__qualname__
    if "<locals>" in name or name.partition(".")[0] not in getattr(sys.modules.get(module), "__dict__", {}):
        name = _NUMBERS.sub("#", name)
    return name if module in ("builtins", "__main__") else f"{module}.{name}"


def _format(error: BaseException) -> list[str]:
    try:
        return traceback.format_exception(error, limit=-50)
    except BaseException:  # noqa: BLE001 — the code of the exception, or of its cause, may raise anything
        return traceback.format_tb(error.__traceback__, limit=-50)


def _place(error: BaseException) -> str:
    step = error.__traceback__
    if step is None:
        return ""
    while step.tb_next is not None:
        step = step.tb_next
    if step.tb_frame.f_globals.get("__name__") == RAISES_FOR_ACTORS:
        return ""  # the actor of a batch returned the exception, so it was raised nowhere in the app
    return place(step.tb_frame.f_code, step.tb_lineno)


def place(code: CodeType, line: int) -> str:
    """Return a line of a function as `file:line in function`."""
    file = "/".join(Path(code.co_filename).parts[-2:])
    return clean(f"{file}:{line} in {code.co_name}", NAME_CHARS)
