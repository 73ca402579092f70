"""What a job is given, item by item, as it is stored; and what can't be stored."""

from collections.abc import Callable
from typing import Any, TypeAlias

from callboard.middleware.message import envelope
from callboard.middleware.message.failure import clean

#: Bytes that one item's arguments may have, as the encoder writes them.
ITEM_LIMIT = 1_048_576

ItemKey: TypeAlias = str | Callable[[Any], Any] | None


class BadItem(ValueError):
    """An item can't be stored; the message says which, counting from 0, and why."""


def row(number: int, item: Any, item_key: ItemKey = None) -> tuple[bytes, str | None]:
    """An item's arguments and its key; `number` is its place in the input. Raises BadItem."""
    args, kwargs = _call(item)
    try:
        encoded = envelope.encode_args(args, kwargs)
    except Exception as error:
        raise BadItem(f"item {number} can't be written as a message: {error}") from error
    if len(encoded) > ITEM_LIMIT:
        raise BadItem(f"item {number} has {len(encoded):,} bytes, and {ITEM_LIMIT:,} are allowed")
    return encoded, _key_of(number, item, item_key)


def _key_of(number: int, item: Any, item_key: ItemKey) -> str | None:
    if item_key is None:
        return None
    try:
        value = item_key(item) if callable(item_key) else item[item_key]
    except Exception as error:
        raise BadItem(f"item {number} has no item key: {type(error).__name__}: {error}") from error
    if value is None:
        raise BadItem(f"item {number} has no item key: it is None")
    return clean(str(value))


def _call(item: Any) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(item, dict):
        return [], item
    return (list(item), {}) if isinstance(item, list | tuple) else ([item], {})
