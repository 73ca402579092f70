"""The wording of numbers, times and actions on the pages. The scripts use the same words for live updates."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from callboard.sql.json_values import parse_strict_json
from callboard.sql.settings import KEEP, LOG_FIELDS, LOG_LINK, keep_span
from callboard.sql.states import JOB_FINAL
from callboard.words import amount, count, duration, left, parsed, percent, rate, shown_state, since

__all__ = ["count", "duration", "left", "parsed", "percent", "rate", "shown_state", "since"]

Job = Mapping[str, Any]

#: Time spans below these are shown in milliseconds, and with tenths of a second.
TINY_SECONDS, SHORT_SECONDS = 1, 10
#: Maximum lines and characters of a text that are shown; the rest is folded.
SHOWN_LINES, SHOWN_CHARS = 20, 3_000
FEW_LINES, FEW_CHARS = 5, 500
#: The texts for a waiting item, for which no row has a time.
WAITING = {"pending": "stored, not published yet", "queued": "published or being published, not started yet"}
#: The states in the order of the bar, final states first, so that the left part of the bar only grows.
STATES = ("succeeded", "skipped", "failed", "cancelled", "retrying", "running", "queued", "pending")

#: A time of the API within a sentence.
_TIME = re.compile(r"\b(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z)")
#: The first line of a frame, also within an exception group; and the files of libraries and of Python.
_FRAME = re.compile(r'(?P<depth>[ |]*)File "(?P<file>[^"]*)", line \d+')
_LIBRARY = re.compile(r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib(?:64)?[/\\]python[\d.]+[/\\]|^<frozen ")


def number(value: float | None) -> str:
    """Return a number with thousands separators."""
    return "–" if value is None else amount(value)


def as_sentence(detail: str) -> str:
    """Return the detail of a problem as a full sentence."""
    return detail[:1].upper() + detail[1:]


def done(job: Job) -> int:
    """Return how many items have an outcome."""
    return int(job["succeeded"] + job["failed"] + job["skipped"])


def between(first: str, last: str) -> str:
    """Return the time span between two times as text; short spans in milliseconds, or with tenths of a second."""
    took = max((parsed(last) - parsed(first)).total_seconds(), 0)
    if took < TINY_SECONDS:
        return f"{1000 * took:.0f} ms"
    return f"{took:.1f} s" if took < SHORT_SECONDS else duration(took)


def utc(time: str) -> str:
    """Return a time in UTC, for browsers without scripts; scripts show it in the reader's time zone."""
    return f"{time[:10]} {time[11:19]} UTC"


def time(iso: str) -> Markup:
    """Return a time of the API as an HTML element."""
    return Markup(f'<time datetime="{iso}">{utc(iso)}</time>')  # noqa: S704 - made from a time


def now() -> str:
    """Return the server's time, by which the scripts of a page correct the browser's clock."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def timed(text: str) -> Markup:
    """Return a sentence as HTML, with its times as elements."""
    parts = _TIME.split(text)
    pairs = zip_longest(parts[::2], map(time, parts[1::2]), fillvalue=Markup())
    return Markup().join(part for pair in pairs for part in pair)


def took(job: Job) -> str:
    """Return the duration of a finished job."""
    return between(job["started_at"], job["finished_at"]) if job["started_at"] and is_over(job) else ""


def progress_text(job: Job) -> str:
    """Return the progress of a job in percent and in items."""
    return f"{percent(job['progress'])}, {number(done(job))} of {count(job['total'], 'item')}"


def is_over(job: Job) -> bool:
    """Return whether a job has ended."""
    return job["state"] in JOB_FINAL


def consequence_of_cancel(job: Job, left: int) -> str:
    """Describe the effect of a cancel on a job. `left`: the number of items that have not started."""
    items = (
        f"{count(left, 'item')} that did not start will not run, unless you retry them."
        if left
        else "None of its items waits to start."
    )
    if job["sealed"] or job["standing"]:  # later plain sends go to another standing job
        return items
    return f"{items} {'Further stages will not be made.' if job['stages'] else 'It takes no more items.'}"


def bar(job: Job) -> Markup:
    """Return the parts of a job's bar, in percent of its width; failed items come last, on top.

    Built here, not in the template: the eight parts of each job would take half of the time of a list.
    """
    parts, begin = {}, 0.0
    for state in STATES:
        width = 100 * _share(job, state)
        shown = f"{width:.3f}" if width else "0"
        parts[state] = f'<rect data-state="{state}" x="{begin:.3f}%" y="-20%" width="{shown}%" height="140%"/>'
        begin += width
    failed = parts.pop("failed")
    return Markup("".join((*parts.values(), failed)))  # noqa: S704 - names of states, and numbers


def _share(job: Job, state: str) -> float:
    """Return the share of a state in the bar. All stages have equal parts, as in the percentage: the part of a stage
    without items is empty.
    """
    if stages := job.get("stages"):
        return sum(_share(stage, state) for stage in stages) / len(stages)
    if job["total"]:
        return float(job[state] / job["total"])
    return float(job["progress"]) if state == "succeeded" else 0.0


def mean_rate(job: Job) -> str:
    """Return the mean rate of an open job as text; empty before the first item has ended."""
    if is_over(job) or not job["started_at"] or not done(job):
        return ""
    seconds = since(job["started_at"])
    return rate(done(job) / seconds) if seconds > 0 else ""


def budget(job: Job) -> str:
    """Return how many items failed and how many may fail; empty without a failure limit."""
    most = job["limits"].get("max_failures")
    if most is None:
        return ""
    allowed = f"{most:,}" if isinstance(most, int) else most.replace("%", " %")
    failed = f"{100 * job['failed'] / max(done(job), 1):.1f} %" if "%" in allowed else f"{job['failed']:,}"
    return f"{failed} failed, {allowed} allowed"


def limits(given: Mapping[str, Any]) -> str:
    """Return limits with their names in the API and on the command line; a removed limit is `none`."""
    return ", ".join(f"{name} {'none' if value is None else value}" for name, value in given.items())


def _retried(detail: Mapping[str, Any]) -> str:
    items = detail.get("items")
    which = [
        ", ".join(detail.get("states") or ()),
        f"of {count(len(items), 'chosen item')}" if items else "",
        f"error {detail['error']}" if "error" in detail else "",
    ]
    named = ", ".join(filter(None, which))
    return count(detail["count"], "item") + (f" ({named})" if named else "")


def _submitted(detail: Mapping[str, Any]) -> str:
    return f"the items of job {detail['items_of']}" if "items_of" in detail else ""


_ACTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {"limit": limits, "retry": _retried, "submit": _submitted}


def action(row: Mapping[str, Any]) -> str:
    """Return a description of an action on a job."""
    words = _ACTIONS.get(row["action"], lambda detail: detail.get("reason"))(row["detail"])
    return f"{row['action']}: {words}" if words else str(row["action"])


def kept_until(job: Job) -> str | None:
    """Return until when a finished job is kept, by its limit or the sweep's setting; None: it is never deleted."""
    keep = job["limits"].get("keep")
    seconds = KEEP.get() if keep is None else keep_span("keep", keep)
    return None if seconds is None else (parsed(job["finished_at"]) + timedelta(seconds=seconds)).isoformat()


def spark(rates: Sequence[float]) -> str:
    """Return the points of an SVG line through rates, in a box of 60 by 16."""
    top, last = max(rates, default=0) or 1, max(len(rates) - 1, 1)
    return " ".join(f"{60 * at / last:.1f},{15 - 14 * one / top:.1f}" for at, one in enumerate(rates))


def has_unmade_stage(job: Job, state: str) -> bool:
    """Return whether a job has this state because one of its stages was never made."""
    return job["state"] == state and any(not stage["sealed"] and stage["state"] == state for stage in job["stages"])


def parts(stage: Job) -> str:
    """Return the counts of a stage by state, as text."""
    present = ", ".join(f"{stage[state]:,} {state}" for state in STATES if stage[state])
    return present or ("no items" if stage["sealed"] else "not made yet")


def frames(traceback: str) -> list[tuple[int, str]]:
    """Return the parts of a traceback, each as (number of consecutive library frames, or 0 for other lines; text)."""
    found: list[tuple[int, list[str]]] = []
    depth, library = "", False
    for line in traceback.splitlines(keepends=True):
        frame = _FRAME.match(line)
        if frame:
            depth, library = f"{frame['depth']}  ", _LIBRARY.search(frame["file"]) is not None
        elif not depth or not line.startswith(depth):
            depth, library = "", False
        begins = int(library and frame is not None)
        if found and (found[-1][0] > 0) == library:
            found[-1][1].append(line)
            found[-1] = (found[-1][0] + begins, found[-1][1])
        else:
            found.append((begins, [line]))
    return [(count_of_frames, "".join(lines)) for count_of_frames, lines in found]


def log_link(item: Mapping[str, Any]) -> str | None:
    """Return the URL of an item's log, by the setting CALLBOARD_LOG_LINK; None if it is not set."""
    address = LOG_LINK.get()
    values = {name: quote(str(item[name] or ""), safe="") for name in LOG_FIELDS}
    return address.format_map(values) if address else None


def pace(job: Job) -> str:
    """Return the rate of a running job as text."""
    return rate(job["rate"]) if done(job) and not job["stalled"] and job["rate"] else ""


def plain(value: Any) -> str:
    """Return a value as JSON; a text unchanged."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def given(item: Mapping[str, Any]) -> Any:
    """Return the arguments of an item: positional ones, keyword ones, or both."""
    if item["args"] is None:
        return item["args_text"]
    if item["args"] and item["kwargs"]:
        return {"args": item["args"], "kwargs": item["kwargs"]}
    return item["args"] or item["kwargs"]


def pretty(value: Any) -> str:
    """Return a value as indented JSON; a text unchanged."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def pretty_text(text: str) -> str:
    """Return a JSON text with indentation; any other text unchanged."""
    strict, value = parse_strict_json(text)
    return pretty(value) if strict and isinstance(value, dict | list) else text


def folded(text: str) -> tuple[str, str]:
    """Return the shown part of a text, and the rest to fold; '' if the text is not much longer."""
    begin = "".join(text.splitlines(keepends=True)[:SHOWN_LINES])[:SHOWN_CHARS]
    rest = text[len(begin) :]
    return (begin, rest) if rest.count("\n") >= FEW_LINES or len(rest) >= FEW_CHARS else (text, "")


def more(rest: str) -> str:
    """Return the length of the folded rest of a text, in words."""
    lines = rest.count("\n") + 1
    return count(lines, "more line") if lines > FEW_LINES else count(len(rest), "more character")


def arguments(item: Mapping[str, Any]) -> str:
    """Return the arguments of an item in the form of a call."""
    if item["args"] is None:
        return str(item["args_text"] or "")
    named = (f"{name}={plain(value)}" for name, value in item["kwargs"].items())
    return ", ".join((*map(plain, item["args"]), *named))


def outcome(item: Mapping[str, Any]) -> str:
    """Return the error of an item, or its result, or why that is not kept."""
    if error := item["error"]:
        return ": ".join(filter(None, (error["type"], error["message"])))
    if item["result_text"] is not None:
        return str(item["result_text"])
    if item["result_unkept"] is not None:
        return f"not kept: {item['result_unkept']}"
    return "" if item["result"] is None else plain(item["result"])
