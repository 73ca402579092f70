"""Reads JSON Lines as a stream: each line is an item."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import msgspec

from callboard.middleware.submission.item_encoding import ITEM_LIMIT_BYTES

BOM = b"\xef\xbb\xbf"
NOT_UTF8 = "not UTF-8"


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no item, or the first of several: its number from 1, the reason, and the last one's number."""

    line: int
    why: str
    last: int = 0

    def __str__(self) -> str:
        more = f" (lines {self.line} to {self.last}, {self.last - self.line + 1} rows)"
        return f"line {self.line}: {self.why}{more if self.last > self.line else ''}"


def lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield lines with their numbers, from 1. A line over `ITEM_LIMIT_BYTES` is cut to one byte more than that."""
    number = 0
    while line := source.readline(ITEM_LIMIT_BYTES + 1):
        number += 1
        rest = line
        while len(rest) > ITEM_LIMIT_BYTES and not rest.endswith(b"\n"):
            rest = source.readline(ITEM_LIMIT_BYTES + 1)
        yield number, line.removeprefix(BOM) if number == 1 else line


def values(numbered: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Any]]:
    """Yield each line's number and JSON value, or BadLine; blank lines are skipped."""
    for number, line in numbered:
        if line.strip():
            yield number, value(number, line)


def value(number: int, line: bytes) -> Any:
    """Return a line's JSON value, or BadLine."""
    if len(line) > ITEM_LIMIT_BYTES:
        return too_long(number)
    try:
        return msgspec.json.decode(line)
    except UnicodeDecodeError:
        return BadLine(number, NOT_UTF8)
    except (msgspec.DecodeError, RecursionError) as error:
        return BadLine(number, f"not valid JSON: {error}")


def too_long(number: int) -> BadLine:
    """Return the error of a line that has more bytes than an item may have."""
    return BadLine(number, f"more than the {ITEM_LIMIT_BYTES:,} bytes that an item may have")
