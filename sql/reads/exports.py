"""Formats whole items as lines of CSV or JSON, without access to the database."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from callboard.sql.reads import queries
from callboard.sql.reads.queries import Query

#: Items that are read at a time: few enough not to block an event loop.
PAGE_ITEMS = 200
#: The first characters by which a spreadsheet takes a cell for a formula.
FORMULA = "=+-@\t\r"
#: The columns of CSV; arguments and results are JSON.
COLUMNS = (
    "job", "item", "key", "actor", "state", "attempt", "args", "kwargs", "result", "error_kind", "error_type",
    "error_message", "error_place", "started_at", "finished_at",
)  # fmt: skip


def rest(item: Mapping[str, Any]) -> Query[dict[str, Any] | None] | None:
    """Return the query that reads a whole item, if its page has only the beginning; None if the page has all of it."""
    texts = (item["args_text"], item["result_text"])
    return None if texts == (None, None) else queries.item(item["job"], item["item"], queries.ALL_CHARACTERS)


def csv_header() -> bytes:
    """Return the first line of CSV."""
    return _csv([COLUMNS])


def csv_lines(items: Sequence[Mapping[str, Any]]) -> bytes:
    """Return items as lines of CSV, in UTF-8. Half a surrogate pair is escaped, as in JSON."""
    return _csv([_cells(item) for item in items])


def json_lines(items: Sequence[Mapping[str, Any]]) -> bytes:
    """Return items as lines of JSON, with the fields of the API."""
    return "".join(f"{_json(item)}\n" for item in items).encode("utf-8", "backslashreplace")


def _csv(rows: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(text: str | None) -> str | None:
    """Return a text that no spreadsheet takes for a formula: a quote before it marks it as text."""
    return f"'{text}" if text and text[0] in FORMULA else text


def _cells(item: Mapping[str, Any]) -> list[object]:
    error = item["error"] or dict.fromkeys(("kind", "type", "message", "place"))
    known = {
        **item,
        **{name: _cell(item[name]) for name in ("key", "actor")},
        **{f"error_{name}": _cell(error[name]) for name in ("kind", "type", "message", "place")},
        "args": _json(item["args"]) if item["args_text"] is None else _cell(item["args_text"]),
        "kwargs": None if item["kwargs"] is None else _json(item["kwargs"]),
        "result": _cell(item["result_text"]) or (None if item["result"] is None else _json(item["result"])),
    }
    return [known[name] for name in COLUMNS]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
