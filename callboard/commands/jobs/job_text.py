"""A job as terminal text: a headline, a bar, and lines for its details."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from callboard.commands.output import STYLES, plain, state
from callboard.sql.states import ITEM_STATES, JOB_FINAL
from callboard.words import UNITS, duration, left, percent, rate, shown_state, since

Job = dict[str, Any]
#: Cells of a one-line job's bar; maximum numbers of shown errors and running items; characters of a message.
CELLS, MOST_ERRORS, MOST_ITEMS, MESSAGE_CHARS = 10, 3, 5, 100


def lines(job: Job) -> RenderableType:
    """Return everything that `status` and `watch` show of a job."""
    # The empty text ends the bar's line, because a bar does not end its line.
    parts: list[RenderableType] = [headline(job), _bar(job, 60), Text(), _counts(job), _pace(job)]
    if job["stages"]:
        parts.append(_stages(job))
    labelled = {
        "step": None if job["state"] in JOB_FINAL else job["step"],
        "reason": job["reason"],
        "limits": ", ".join(f"{name} {value}" for name, value in job["limits"].items()),
    }
    parts += [Text(f"{label}: ").append_text(plain(text)) for label, text in labelled.items() if text]
    if job["stalled"]:
        parts.append(_warning("stalled", job["stalled"]))
    return Group(*parts, *hung(job))


def line(job: Job) -> Text:
    """Return one line for a job among others: headline, bar, number of failures, rate and remaining time."""
    more = [rate(job["rate"], " items")] if job["rate"] and job["state"] == "running" else []
    more += [f"{job['failed']:,} failed"] if job["failed"] else []
    more += [f"{left(job)} left"] if job["eta"] else []
    more += [job["stalled"]] if job["stalled"] else []
    return Text.assemble(cells(job), " ", headline(job), *(Text(" · ").append_text(plain(one)) for one in more))


def cells(job: Job) -> Text:
    """Return a bar of ten cells; only the bar of a finished job is full."""
    full = math.floor(job["progress"] * CELLS)
    return Text("█" * full + "░" * (CELLS - full), style=STYLES.get(job["state"], "blue"))


def details(errors: Sequence[Job], held: Sequence[Job]) -> list[RenderableType]:
    """Return lines for the first errors of a job, and for its longest running items."""
    found: list[RenderableType] = []
    for error in [one for one in errors if one["failed"]][:MOST_ERRORS]:
        text = f"{error['type'] or error['kind']}: {' '.join((error['message'] or '').split())[:MESSAGE_CHARS]}"
        found.append(Text(f"{error['failed']:,} failed: ", style="red").append_text(plain(text)))
    for item in sorted(held, key=lambda one: one["started_at"] or "")[:MOST_ITEMS]:
        took = duration(since(item["started_at"]) if item["started_at"] else 0)
        step = f", {item['step']}" if item["step"] else ""
        found.append(plain(f"item {item['item']} for {took} on worker {item['worker']}{step}"))
    return found


def next_words(job: Job) -> Text:
    """Return the commands that a reader may type next."""
    number, then = job["id"], []
    if job["failed"]:
        then += [f"callboard errors {number}", f"callboard retry {number}"]
    if job["state"] in JOB_FINAL:
        then += [f"callboard export {number}"]
    elif job["state"] == "paused":
        then += [f"callboard resume {number}"]
    else:
        then += [f"callboard watch {number}", f"callboard pause {number}"]
    return Text(" · ".join(then), style="dim")


def headline(job: Job) -> Text:
    """Return the headline: `17 name running 45.0 % of 1,000`."""
    name = plain(job["name"])
    name.stylize("bold")
    now = Text(f"is being stopped: {job['stopping']}") if job["stopping"] else state(shown_state(job))
    return Text.assemble(f"{job['id']} ", name, " ", now, f" {percent(job['progress'])} of {job['total']:,}")


def hung(job: Job) -> list[Text]:
    """Return a line for each item that runs much longer than its actor's items usually do."""
    return [
        _warning("hung", f"{_item(one)} on worker {one['worker']}, for {duration(one['seconds'])}, at {one['place']}")
        for one in job["hung"]
    ]


def _stages(job: Job) -> RenderableType:
    """Return a line for each stage."""
    grid = Table.grid(padding=(0, 1))
    for stage in job["stages"]:
        now = state(shown_state(stage))
        counts = _counts(stage) if stage["total"] or stage["sealed"] else Text("not made yet")
        grid.add_row(str(stage["stage"]), plain(stage["name"]), now, _bar(stage, 20), counts)
    return grid


def _bar(job: Job, width: int) -> ProgressBar:
    style = STYLES.get(job["state"], "blue")
    return ProgressBar(total=1.0, completed=job["progress"], width=width, complete_style=style)


def _counts(job: Job) -> Text:
    """Return the states that have items, each with its count."""
    parts = [Text(f"{job[name]:,} {name}", style=STYLES.get(name, "")) for name in ITEM_STATES if job[name]]
    return Text(" · ").join(parts) if parts else Text("no items")


def _pace(job: Job) -> Text:
    """Return rate, time left, retries, crashes and unkept results, each if there is one."""
    parts = [] if job["rate"] is None else [rate(job["rate"], " items")]
    if job["eta"]:
        parts.append(f"{'its stage ' if job['stages'] else ''}done in {left(job)}")
    words = {
        "retries": ("retry", "retries"), "crashes": ("crash", "crashes"),
        "unkept": ("result is not kept", "results are not kept"),
    }  # fmt: skip
    parts += [f"{job[name]:,} {forms[job[name] != 1]}" for name, forms in words.items() if job[name]]
    return Text(" · ".join(parts), style="dim")


def age(time: str) -> str:
    """Return how long ago a time of the API was, in the largest unit."""
    seconds = since(time)
    size, unit = next((one for one in UNITS if seconds >= one[0]), UNITS[-1])
    return f"{max(seconds, 0) / size:.0f} {unit}"


def _warning(label: str, text: str) -> Text:
    return Text(f"{label}: ", style="yellow").append_text(plain(text))


def _item(one: Job) -> str:
    return f"item {one['item']}" + (f" of job {one['job']}" if "job" in one else "")
