"""How times and numbers are written in JSON, and which texts PostgreSQL can store."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec


def iso(time: datetime | None) -> str | None:
    """Format a time as ISO 8601, in UTC, to the millisecond; None for None."""
    if time is None:
        return None
    time = time.astimezone(UTC)
    try:
        text: str = msgspec.to_builtins(time)  # takes a third of the time of isoformat
    except TypeError:  # a subclass of datetime, as pandas, pendulum and freezegun have
        return f"{time.isoformat(timespec='milliseconds')[:23]}Z"
    return f"{text[:23]}Z" if time.microsecond else f"{text[:-1]}.000Z"


def parse_json(text: str | bytes) -> Any:
    """Parse JSON from the database. msgspec is faster; `json` also parses numbers beyond a float."""
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:
        return json.loads(text)


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text: it has no NUL character and no half of a surrogate pair."""
    return "\x00" not in text and (text.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in text))


def parse_strict_json(text: str) -> tuple[bool, Any]:
    """Parse strict JSON: (True, the value), or (False, None) for anything else, like NaN or a number beyond a float."""
    try:
        return True, json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return False, None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(digits)
    return value
