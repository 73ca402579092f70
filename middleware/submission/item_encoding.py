"""Encodes an item of a job as it is stored."""

from collections.abc import Callable
from typing import Any, TypeAlias

from callboard.middleware.message import envelope
from callboard.middleware.message.failure import clean

#: The most bytes that an item's encoded arguments may have.
ITEM_LIMIT_BYTES = 1_048_576

#: A field of the items, or a function of an item.
ItemKey: TypeAlias = str | Callable[[Any], Any] | None
#: An item as it is stored: its encoded arguments and its item key.
Row: TypeAlias = tuple[bytes, str | None]


class BadItem(ValueError):
    """An item can't be stored; the message says which one, counting from 0, and why."""


def encode(number: int, item: Any, item_key: ItemKey = None) -> Row:
    """Encode the item that has this number in the input; raises BadItem."""
    if isinstance(item, dict):
        args, kwargs = [], item
    else:
        args, kwargs = list(item) if isinstance(item, list | tuple) else [item], {}
    try:
        encoded = envelope.encode_args(args, kwargs)
    except Exception as error:
        raise BadItem(f"item {number} can't be written as a message: {error}") from error
    if len(encoded) > ITEM_LIMIT_BYTES:
        raise BadItem(f"item {number} has {len(encoded):,} bytes, and {ITEM_LIMIT_BYTES:,} are allowed")
    return encoded, None if item_key is None else _key(number, item, item_key)


def _key(number: int, item: Any, item_key: str | Callable[[Any], Any]) -> str:
    try:
        value = item_key(item) if callable(item_key) else item[item_key]
    except Exception as error:
        raise BadItem(f"item {number} has no item key: {type(error).__name__}: {error}") from error
    if value is None:
        raise BadItem(f"item {number} has no item key: it is None")
    return clean(str(value))
