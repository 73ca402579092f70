"""Streams items from a file: a line of JSON Lines or a row of CSV is an item."""

import codecs
import csv
import io
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from callboard.commands.errors import CommandError
from callboard.middleware.submission import json_lines
from callboard.middleware.submission.item_encoding import ITEM_LIMIT_BYTES
from callboard.middleware.submission.json_lines import BadLine

FORMATS = ("jsonl", "csv")
SUFFIXES = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
#: Encodings by the byte order mark of a file; longer marks come first.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
#: Kinds of binary files, by their first bytes.
NO_TEXT = {
    b"\x1f\x8b": "compressed: submit what `zcat` writes",
    b"\x28\xb5\x2f\xfd": "compressed: submit what `zstdcat` writes",
    b"PK\x03\x04": "a spreadsheet or a ZIP archive: save it as CSV",
    b"PAR1": "a Parquet file: convert it to JSON Lines",
}
#: Characters that may separate the columns of CSV, besides the comma; and characters that may not.
DELIMITERS, NO_DELIMITERS = ";\t|", '"\r\n'
NOT_UTF8 = f"{json_lines.NOT_UTF8}: give the file's encoding, like --encoding cp1252"


@contextmanager
def opened(file: str, encoding: str | None, say: Callable[[str], None]) -> Iterator[BinaryIO]:
    """Open a file as UTF-8 that can be read twice. Standard input, pipes and files in other encodings are first copied
    to a temporary file. `encoding` None: UTF-8, or the encoding of the byte order mark, which `say` prints.

    Raises CommandError for a file that can't be read, or has another encoding.
    """
    if file == "-" and sys.stdin is None:
        raise CommandError("there is no standard input: give the items in a FILE", code=2)
    with ExitStack() as stack:
        try:
            stdin = file == "-"
            source = stack.enter_context(sys.stdin.buffer) if stdin else stack.enter_context(Path(file).open("rb"))
            if stdin or not Path(file).is_file():
                spooled = stack.enter_context(TemporaryFile(prefix="callboard-"))
                shutil.copyfileobj(source, spooled)
                source = spooled
            text = stack.enter_context(_utf8(source, encoding, say))
        except OSError as error:
            raise CommandError(f"can't read {file}: {error.strerror or error}") from error
        yield text  # outside of the `try`: an error of the output is not an error of the file


@contextmanager
def _utf8(source: BinaryIO, encoding: str | None, say: Callable[[str], None]) -> Iterator[BinaryIO]:
    source.seek(0)
    head = source.read(4096)
    source.seek(0)
    if encoding is None and (marked := next((MARKS[mark] for mark in MARKS if head.startswith(mark)), None)):
        encoding = marked
        say(f"reading the file as {encoding.upper()}, by its byte order mark")
    if encoding is None:
        _check_text(head)
        yield source
        return
    with TemporaryFile(prefix="callboard-") as text:
        try:
            with io.TextIOWrapper(source, encoding, newline="") as decoded:
                shutil.copyfileobj(decoded, codecs.getwriter("utf-8")(text))
        except LookupError:
            raise CommandError(f"there is no encoding {encoding!r}", code=2) from None
        except UnicodeError as error:
            raise CommandError(f"the file is not {encoding}: {error}") from None
        yield text


def _check_text(head: bytes) -> None:
    """Raise CommandError if the first bytes of a file are not lines of UTF-8 text."""
    if what := next((what for mark, what in NO_TEXT.items() if head.startswith(mark)), None):
        raise CommandError(f"the file is {what}")
    if b"\x00" in head:
        raise CommandError("the file has NUL characters: if it is UTF-16, use --encoding utf-16-le")
    if b"\r" in head and b"\n" not in head:
        raise CommandError("the lines of the file end with CR only: convert it with `tr '\\r' '\\n'`")


def named_delimiter(given: str) -> str:
    """Return the character that --delimiter names. Raises CommandError."""
    sign = "\t" if given == "\\t" else given
    if len(sign) != 1 or sign in NO_DELIMITERS:
        raise CommandError(f"--delimiter must be one character like ';', or '\\t' for a tab, not {given!r}", code=2)
    return sign


def delimiter(source: BinaryIO, say: Callable[[str], None]) -> str:
    """Return the delimiter of a CSV file: a comma; or, if its header has no comma and just one of `DELIMITERS`, that
    one, which `say` prints.
    """
    source.seek(0)
    lines = iter(lambda: source.readline(ITEM_LIMIT_BYTES), b"")
    header = next((line for line in lines if line.strip()), b"").decode(errors="replace")
    found = [sign for sign in DELIMITERS if sign in header]
    if "," in header or len(found) != 1:
        return ","
    say(f"reading the columns as separated by {found[0]!r}; --delimiter overrides this")
    return found[0]


def items(source: BinaryIO, form: str, item_key: str | None, divided_by: str = ",") -> Iterator[tuple[int, Any]]:
    """Yield each line's number and item from the beginning of the file, or a BadLine.

    Raises CommandError for a bad CSV header.
    """
    source.seek(0)
    for number, item in csv_rows(source, divided_by) if form == "csv" else json_lines.values(json_lines.lines(source)):
        yield number, _with_key(number, item, item_key)


def _with_key(number: int, item: Any, item_key: str | None) -> Any:
    if item == BadLine(number, json_lines.NOT_UTF8):
        return BadLine(number, NOT_UTF8)
    if item_key is None or isinstance(item, BadLine):
        return item
    if not isinstance(item, dict) or item_key not in item:
        return BadLine(number, f"it has no field {item_key!r}, which --item-key names")
    if item[item_key] is None:
        return BadLine(number, f"its field {item_key!r}, which --item-key names, is null")
    return item


def check_no_array(source: BinaryIO) -> None:
    """Raise CommandError for a file that is one JSON array, because its elements are meant as items, not its lines."""
    source.seek(0)
    lines = (line for _, line in json_lines.lines(source) if line.strip())
    first = next(lines, b"")
    alone = next(lines, None) is None
    item = json_lines.value(1, first)
    objects = isinstance(item, list) and len(item) > 1 and all(isinstance(one, dict) for one in item)
    broken = isinstance(item, BadLine) and first.lstrip().startswith(b"[") and not alone
    if broken or (objects and alone):
        raise CommandError(
            "the file is one JSON array, but each line must be an item: convert it with `jq -c '.[]'`; with "
            "--format jsonl its lines are read unchanged"
        )


def csv_rows(source: BinaryIO, divided_by: str = ",") -> Iterator[tuple[int, Any]]:
    """Yield each row's first line number and its dict of texts by the header, or BadLine; blank rows are skipped."""
    before = csv.field_size_limit(ITEM_LIMIT_BYTES)
    try:
        # Bytes that are not UTF-8 become surrogates, which `_row` finds, so that the error names the right line.
        texts = (line.decode("utf-8", "surrogateescape") for _, line in json_lines.lines(source))
        rows = csv.reader(texts, strict=True, delimiter=divided_by)
        header = _header(rows)
        yield from _rows(rows, header)
    finally:
        csv.field_size_limit(before)


def _header(rows: Any) -> list[str]:
    try:
        header: list[str] = next((row for row in rows if any(map(str.strip, row))), [])
    except csv.Error as error:
        raise CommandError(f"line {rows.line_num}: not a CSV header: {error}") from None
    if wrong := _unreadable(header):
        raise CommandError(f"line {rows.line_num}: {wrong}")
    if not all(header) or len(set(header)) < len(header):
        raise CommandError(f"line {rows.line_num}: each column of the header needs a unique name")
    return header


def _rows(rows: Any, header: list[str]) -> Iterator[tuple[int, Any]]:
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield number, BadLine(number, f"not valid CSV: {error}", rows.line_num)
            continue
        if row is None:
            return
        if row:
            yield number, _row(number, rows.line_num, row, header)


def _row(number: int, last: int, row: list[str], header: list[str]) -> Any:
    if len(row) != len(header):
        return BadLine(number, f"{len(row)} fields, and the header has {len(header)}", last)
    if sum(map(len, row)) > ITEM_LIMIT_BYTES:
        return json_lines.too_long(number)
    if wrong := _unreadable(row):
        return BadLine(number, wrong, last)
    return dict(zip(header, row, strict=True))


def _unreadable(row: list[str]) -> str | None:
    text = "".join(row)
    try:
        text.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    return "a NUL character" if "\x00" in text else None
