"""Reads items from a file, as a stream: a line of JSON Lines or a row of CSV is an item."""

import csv
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import msgspec

from callboard.commands.errors import CommandError
from callboard.middleware.submission.item_encoding import ITEM_LIMIT_BYTES

BOM = b"\xef\xbb\xbf"
FORMATS = ("jsonl", "csv")
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is no item: its number, from 1, and why."""

    line: int
    why: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.why}"


@contextmanager
def opened(file: str) -> Iterator[BinaryIO]:
    """Open a file that can be read twice; `-` and pipes are copied to a temporary file first.

    Raises CommandError for a file that can't be read.
    """
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as source:
            if file != "-" and Path(file).is_file():
                yield source
                return
            with TemporaryFile(prefix="callboard-") as spooled:
                shutil.copyfileobj(source, spooled)
                yield spooled
    except OSError as error:
        raise CommandError(f"can't read {file}: {error.strerror or error}") from error


def items(source: BinaryIO, form: str, item_key: str | None) -> Iterator[Any]:
    """The item of each line from the beginning of the file, or a BadLine. Raises CommandError for a bad CSV header."""
    source.seek(0)
    for number, item in (csv_rows if form == "csv" else json_lines)(source):
        keyed = item_key is None or isinstance(item, BadLine) or (isinstance(item, dict) and item_key in item)
        yield item if keyed else BadLine(number, f"it has no {item_key!r} for its item key")


def json_lines(source: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Each line's number and JSON value, or BadLine; blank lines are left out."""
    for number, line in _lines(source):
        if line.strip():
            yield number, _decoded(number, line)


def _decoded(number: int, line: bytes) -> Any:
    if len(line) > ITEM_LIMIT_BYTES:
        return _too_long(number)
    try:
        return msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BadLine(number, f"no JSON: {error}")


def _too_long(number: int) -> BadLine:
    return BadLine(number, f"more than the {ITEM_LIMIT_BYTES:,} bytes that an item may have")


def _lines(source: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1. A line over the limit is cut to one byte more than that."""
    number = 0
    while line := source.readline(ITEM_LIMIT_BYTES + 1):
        number += 1
        rest = line
        while len(rest) > ITEM_LIMIT_BYTES and not rest.endswith(b"\n"):
            rest = source.readline(ITEM_LIMIT_BYTES + 1)
        yield number, line.removeprefix(BOM) if number == 1 else line


def csv_rows(source: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Each row's first line and its dict of texts by the header, or BadLine; blank rows are left out."""
    before = csv.field_size_limit(ITEM_LIMIT_BYTES)
    try:
        # Bytes that are not UTF-8 become surrogates, which `_row` finds: so the error names the right line.
        texts = (line.decode("utf-8", "surrogateescape") for _, line in _lines(source))
        rows = csv.reader(texts, strict=True)
        header = _header(rows)
        yield from _rows(rows, header)
    finally:
        csv.field_size_limit(before)


def _header(rows: Any) -> list[str]:
    try:
        header: list[str] = next(rows, [])
    except csv.Error as error:
        raise CommandError(f"line 1: no CSV header: {error}") from None
    if not all(header) or len(set(header)) < len(header):
        raise CommandError("line 1: a column of the header has no name, or two have the same")
    return header


def _rows(rows: Any, header: list[str]) -> Iterator[tuple[int, Any]]:
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield number, BadLine(number, f"no CSV: {error}")
            continue
        if row is None:
            return
        if row:
            yield number, _row(number, row, header)


def _row(number: int, row: list[str], header: list[str]) -> Any:
    if len(row) != len(header):
        return BadLine(number, f"{len(row)} fields, and the header has {len(header)}")
    if sum(map(len, row)) > ITEM_LIMIT_BYTES:
        return _too_long(number)
    try:
        "".join(row).encode()
    except UnicodeEncodeError:
        return BadLine(number, "not UTF-8")
    return dict(zip(header, row, strict=True))
