"""Describes items, errors, callbacks, pages and recounts as the API does. Without access to the database."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

from callboard.sql.call_bytes import unpacked
from callboard.sql.callback_targets import redact_url
from callboard.sql.json_values import iso, parse_strict_json

Rows: TypeAlias = Sequence[dict[str, Any]]
#: The described rows of a page, and the cursor of the next page or None.
Page: TypeAlias = tuple[list[dict[str, Any]], int | None]

#: The checks of `verify` by name: the stored number, and the counted number that it must be.
CHECKS = {
    "total": "items the job counts, and item rows",
    "published": "items published, and item rows that are past the watermark or out of the outbox",
    "retrying": "items that wait for a retry, and item rows that do",
    "succeeded": "items that succeeded, and item rows that did",
    "failed": "items that failed, and item rows that did",
    "skipped": "items that were skipped, and item rows that were",
    "cancelled": "items cancelled while their job went on, and item rows that were",
    "in_turn": "messages that wait for the job's turn, and rows of the outbox that do",
    "retries": "attempts given another, and attempt rows that were",
    "crashes": "crashes charged to the job, and to its items",
    "unkept": "items whose result is not kept, and rows of results that say why",
    "errors": "attempts in the groups of errors, and attempt rows that are errors",
    "fatal": "attempts in the groups of errors that ended their item, and attempt rows that did",
    "stages": "stages the job says it has, and job rows that are stages of it",
    "unended": "stages of the job that may be open or were stopped, once it is over or completed, and those that are",
    "parked": "items that wait for a retry, and those of them with a message in the outbox",
}


def page(found: list[dict[str, Any]], limit: int, cursor: str) -> Page:
    """Return a page of `limit` rows. `found` may have one row more, which shows that there is a next page."""
    return found[:limit], found[limit - 1][cursor] if len(found) > limit else None


def items(number: int, rows: Rows, cap: int, limit: int) -> Page:
    """Describe a page of items from rows of `job_items`; see `page` and `item`."""
    found, following = page([item(number, row, cap) for row in rows if row["item"] is not None], limit, "item")
    return found, rows[0]["looked_at"] if rows and following is None else following


def with_iso_times(*columns: str) -> Callable[[Rows], list[dict[str, Any]]]:
    """Return a function that formats these columns of rows as ISO times."""
    return lambda rows: [{**row, **{name: iso(row[name]) for name in columns}} for row in rows]


def item(number: int, row: dict[str, Any], cap: int) -> dict[str, Any]:
    """Describe an item from a row of `job_items`; arguments and results of more than `cap` characters are cut."""
    same = ("item", "key", "actor", "state", "attempt", "crashes", "step", "stack", "worker")
    return {
        "job": number,
        **{name: row[name] for name in same},
        **_arguments(row, cap),
        **_value(row, cap),
        "progress": _progress(row),
        "error": _error(row),
        **{name: iso(row[name]) for name in ("sent_at", "due_at", "first_started_at", "started_at", "finished_at")},
    }


def _arguments(row: dict[str, Any], cap: int) -> dict[str, Any]:
    """Describe arguments as JSON if they are JSON and not cut, else as text: another encoder may have written them."""
    encoded, whole = unpacked(bytes(row["args"])), row["args_size"] <= cap
    text = (encoded if whole else encoded[:cap]).decode("utf-8", "replace")
    strict, value = parse_strict_json(text) if whole else (False, None)
    if strict and isinstance(value, dict) and set(value) == {"args", "kwargs"}:
        return {"args": value["args"], "kwargs": value["kwargs"], "args_text": None}
    return {"args": None, "kwargs": None, "args_text": text}


def _value(row: dict[str, Any], cap: int) -> dict[str, Any]:
    if row["result"] is None:
        return {"result": None, "result_text": None, "result_unkept": row["result_unkept"]}
    strict, value = parse_strict_json(row["result"]) if row["result_size"] <= cap else (False, None)
    return {"result": value, "result_text": None if strict else row["result"], "result_unkept": None}


def _progress(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["progress_done"] is None:
        return None
    return {"done": _short(row["progress_done"]), "total": _short(row["progress_total"])}


def _short(number: float | None) -> float | int | None:
    """Return 3 for 3.0."""
    return int(number) if number is not None and number.is_integer() else number


def _error(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["error_type"] is None:
        return None
    return {name: row[f"error_{name}"] for name in ("kind", "type", "message", "place")}


def callbacks(rows: Rows) -> list[dict[str, Any]]:
    """Describe callbacks from rows of `job_callbacks`, without the secrets of their URLs."""
    same = ("id", "on", "state", "tries", "error")
    times = ("created_at", "due_at", "finished_at")
    return [
        {
            **{name: row[name] for name in same},
            "target": row["actor"] if row["url"] is None else redact_url(row["url"]),
            **{name: iso(row[name]) for name in times},
        }
        for row in rows
    ]


def points(rows: Rows) -> list[dict[str, Any]]:
    """Describe the points of a chart from rows of `samples`."""
    pairs = pairwise([*rows[:1], *rows])
    return [{**row, "at": iso(row["at"]), "rate": _rate(before, row)} for before, row in pairs]


def paces(rows: Rows) -> dict[int, list[float]]:
    """Return the rates of jobs from rows of `paces`: each is the rate since the previous sample."""
    found: dict[int, list[float]] = {}
    for before, row in pairwise(rows):
        if before["job"] == row["job"]:
            found.setdefault(row["job"], []).append(_rate(before, row))
    return found


def _rate(before: dict[str, Any], row: dict[str, Any]) -> float:
    """Return items per second between two samples; at least 0, because a retry reduces the ended items."""
    seconds = (row["at"] - before["at"]).total_seconds()
    return float(f"{max(row['ended'] - before['ended'], 0) / seconds:.3g}") if seconds > 0 else 0.0


def drift_report(rows: Rows) -> dict[str, Any]:
    """Describe a recount from rows of `recount`: how many jobs, which checks, and each drift with both numbers."""
    drift = [
        {"job": row["id"], "name": row["name"], "check": check, "stored": stored, "counted": counted}
        for row in rows
        for check in CHECKS
        if _drifts(check, stored := row["stored"][check], counted := row["counted"][check], over=row["over"])
    ]
    return {"jobs": len(rows), "checks": CHECKS, "drift": drift}


def _drifts(check: str, stored: int, counted: int, *, over: bool) -> bool:
    """Compare the numbers of a check. The unpublished messages of an ended job are dropped."""
    if over and check == "published":
        return stored > counted
    return stored != counted and not (over and check == "parked")
