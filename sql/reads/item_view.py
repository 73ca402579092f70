"""What stored rows mean beside a job's own: items with arguments, results, errors; pages; a recount. Pure."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from callboard.sql.callback_targets import shown
from callboard.sql.json_values import iso, plain_json

Rows: TypeAlias = Sequence[dict[str, Any]]
#: The rows of a page, described, and the cursor of the next page or None.
Page: TypeAlias = tuple[list[dict[str, Any]], int | None]

#: What `verify` compares: the name of the check and what it is, stored against counted.
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
    "errors": "attempts in the groups of errors, and attempt rows that are errors",
    "fatal": "attempts in the groups of errors that ended their item, and attempt rows that did",
    "stages": "stages the job says it has, and job rows that are stages of it",
    "unended": "stages of the job that may be open or were stopped, once it is over or completed, and those that are",
    "parked": "items that wait for a retry, and those of them with a message in the outbox",
}


def page(found: list[dict[str, Any]], limit: int, cursor: str) -> Page:
    """One row more than the page holds was asked for: it says that there is a next page."""
    return found[:limit], found[limit - 1][cursor] if len(found) > limit else None


def only(found: list[dict[str, Any]], position: int) -> dict[str, Any] | None:
    """The item asked for, where the page that begins there has it."""
    return found[0] if found and found[0]["item"] == position else None


def timed(*columns: str) -> Callable[[Rows], list[dict[str, Any]]]:
    """Makes rows as they are, with these columns as ISO times."""
    return lambda rows: [{**row, **{name: iso(row[name]) for name in columns}} for row in rows]


def item(number: int, row: dict[str, Any], cap: int) -> dict[str, Any]:
    """A row of `job_items.sql` as the API describes an item; what is longer than `cap` is cut, and text."""
    same = ("item", "key", "actor", "state", "attempt", "crashes", "step", "stack", "worker")
    return {
        "job": number,
        **{name: row[name] for name in same},
        **_arguments(row, cap),
        **_value(row, cap),
        "progress": _progress(row),
        "error": _error(row),
        **{name: iso(row[name]) for name in ("due_at", "started_at", "stack_at", "finished_at")},
    }


def _arguments(row: dict[str, Any], cap: int) -> dict[str, Any]:
    """As JSON where they are JSON and not cut, else as text; another encoder may have written them."""
    text = bytes(row["args"]).decode("utf-8", "replace")
    strict, value = plain_json(text) if row["args_size"] <= cap else (False, None)
    if strict and isinstance(value, dict) and set(value) == {"args", "kwargs"}:
        return {"args": value["args"], "kwargs": value["kwargs"], "args_text": None}
    return {"args": None, "kwargs": None, "args_text": text}


def _value(row: dict[str, Any], cap: int) -> dict[str, Any]:
    if row["result"] is None:
        return {"result": None, "result_text": None}
    strict, value = plain_json(row["result"]) if row["result_size"] <= cap else (False, None)
    return {"result": value, "result_text": None if strict else row["result"]}


def _progress(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["progress_done"] is None:
        return None
    return {"done": _short(row["progress_done"]), "total": _short(row["progress_total"])}


def _short(number: float | None) -> float | int | None:
    """3, where a float would be read as 3.0."""
    return int(number) if number is not None and number.is_integer() else number


def _error(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["error_type"] is None:
        return None
    return {name: row[f"error_{name}"] for name in ("kind", "type", "message", "place")}


def callbacks(rows: Rows) -> list[dict[str, Any]]:
    """Rows of `job_callbacks.sql` as the API describes callbacks: no secret of a URL is told."""
    same = ("id", "on", "state", "tries", "error")
    times = ("created_at", "due_at", "finished_at")
    return [
        {
            **{name: row[name] for name in same},
            "target": row["actor"] if row["url"] is None else shown(row["url"]),
            **{name: iso(row[name]) for name in times},
        }
        for row in rows
    ]


def verdict(rows: Rows) -> dict[str, Any]:
    """Rows of `recount.sql` as the jobs looked at, the checks made, and each drift with both numbers."""
    drift = [
        {"job": row["id"], "name": row["name"], "check": check, "stored": stored, "counted": counted}
        for row in rows
        for check in CHECKS
        if _drifts(
            check, stored := row[f"stored_{check}"], counted := row[f"counted_{check}"], over=row["over"]
        )
    ]
    return {"jobs": len(rows), "checks": CHECKS, "drift": drift}


def _drifts(check: str, stored: int, counted: int, *, over: bool) -> bool:
    """When a job is over, its unpublished messages are dropped, and nothing is to be sent any more."""
    if over and check == "published":
        return stored > counted
    return stored != counted and not (over and check == "parked")
