"""Encodes an item of a job for the database."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from callboard.middleware.message import envelope
from callboard.sql.json_values import is_storable
from callboard.sql.signature import Signature

#: The most bytes that an item's encoded arguments may have.
ITEM_LIMIT_BYTES = 1_048_576
#: The most bytes of an item key that is stored unchanged: an index contains it.
KEY_BYTES = 500
#: The prefix of a digest, which is stored instead of a longer item key.
DIGEST = "sha256:"

#: The types of item keys in addition to those of JSON. The text of such a key identifies its value in any process.
KEY_TYPES = (date, time, timedelta, Decimal, UUID, Enum, bytes, PurePath)

#: The first characters of JSON texts.
JSON_BEGINS = '"[{-0123456789tfnNI'

#: The types of an item that has arguments by position. `isinstance` with a tuple takes a third of the time of a union.
_BY_POSITION = (list, tuple)

#: The item key: a field of the items, or a function of an item; None: items have no key.
ItemKey: TypeAlias = str | Callable[[Any], Any] | None
#: An item as it is stored: its encoded arguments and its item key.
Row: TypeAlias = tuple[bytes, str | None]


class BadItem(ValueError):
    """An item can't be stored; the text says which one, counting from 0, and why."""


class Lane(NamedTuple):
    """The argument that decides an item's lane, and the arguments that the actor takes; None if they are not known."""

    by: str
    signature: Signature | None

    def check(self) -> None:
        """Raise ValueError if the actor is known to have no such argument."""
        if self.signature is not None:
            self.signature.check_lane(self.by)

    def is_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Return whether a call has that argument, or leaves it to the actor's default.

        All calls that pass it the other way, by position instead of keyword or the reverse, would be in one lane.
        """
        by = int(self.by) if self.by.isdecimal() else self.by
        given = by < len(args) if isinstance(by, int) else by in kwargs
        return given or (self.signature is not None and self.signature.is_left_out(by, args, kwargs))


def encode_all(
    items: Iterable[Any], *, stored: int = 0, item_key: ItemKey = None, signature: Signature | None = None,
    lane: Lane | None = None,
) -> Iterator[Row]:  # fmt: skip
    """Encode the items after the first `stored` ones, which are skipped. `signature`: the arguments that their actor
    takes, None if they are not known. `lane`: the argument that decides their lane. Raises BadItem.
    """
    source = iter(items)
    next(islice(source, stored, stored), None)
    for number, item in enumerate(source, stored):
        yield encode(number, item, item_key, signature, lane=lane)


def call_of(item: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return an item's arguments, by position and by keyword."""
    if isinstance(item, dict):
        return [], item
    return list(item) if isinstance(item, _BY_POSITION) else [item], {}


def add_to_digest(digest: bytes, row: Row) -> bytes:
    """Return the digest of the items of `digest` and one more item."""
    args, key = row
    return hashlib.sha256(b"%b%d:%b%b" % (digest, len(args), args, (key or "").encode())).digest()


def encode(
    number: int, item: Any, item_key: ItemKey = None, signature: Signature | None = None, noun: str = "item", *,
    lane: Lane | None = None,
) -> Row:  # fmt: skip
    """Encode the item, or `noun`, with this number in the input. Raises BadItem."""
    args, kwargs = call_of(item)
    if signature is not None and (wrong := signature.misfit(args, kwargs)):
        raise BadItem(f"{noun} {number} does not fit its actor: {wrong}")
    if lane is not None and not lane.is_of(args, kwargs):
        raise BadItem(
            f"{noun} {number} has no argument {lane.by!r} for concurrency_by, which names a keyword argument, like "
            "customer_id=5, or the position of another, like 0=5"
        )
    try:
        encoded = envelope.encode_args(args, kwargs)
    except Exception as error:
        raise BadItem(f"{noun} {number} can't be written as a message: {error}") from error
    if len(encoded) > ITEM_LIMIT_BYTES:
        raise BadItem(f"{noun} {number} has {len(encoded):,} bytes, and {ITEM_LIMIT_BYTES:,} are allowed")
    return encoded, None if item_key is None else _key(f"{noun} {number}", item, item_key)


def _key(which: str, item: Any, item_key: str | Callable[[Any], Any]) -> str:
    try:
        value = item_key(item) if callable(item_key) else item[item_key]
        if value is not None:
            return key_text(value)
    except Exception as error:
        raise BadItem(f"{which} has no item key: {type(error).__name__}: {error}") from error
    raise BadItem(f"{which} has no item key: it is None")


def key_text(value: Any) -> str:
    """Return the text of an item key that a row stores: different values have different texts.

    A text stays unchanged, other values become JSON. A text that is valid JSON is quoted, so "1" differs from 1. A key
    that is too long for an index, or that PostgreSQL can't store as text, becomes a digest. Raises TypeError for an
    object whose text does not identify its value, and ValueError for NaN, which means a missing value.
    """
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, allow_nan=False, default=_value_text)
    if isinstance(value, str) and (value.startswith(DIGEST) or (value[:1] in JSON_BEGINS and _is_json(value))):
        text = json.dumps(value)
    encoded = text.encode(errors="surrogatepass")
    if len(encoded) <= KEY_BYTES and is_storable(text):
        return text
    return DIGEST + hashlib.sha256(encoded).hexdigest()


def key_texts(key: str | None) -> tuple[str, ...]:
    """Return the texts that a row may store for a key that is searched: the key unchanged, as rows show it, and
    encoded; an empty tuple for None.
    """
    return () if key is None else (key, key_text(key))


def _value_text(value: Any) -> str:
    if isinstance(value, KEY_TYPES):
        return str(value)
    raise TypeError(f"its type {type(value).__name__} can't be one: give a text, a number, a date or a UUID")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
