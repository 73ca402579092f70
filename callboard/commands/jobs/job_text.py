"""A job as terminal text: a headline, a bar, and lines for what is known of it."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from callboard.commands.output import STYLES, plain, state
from callboard.sql.states import ITEM_STATES, JOB_FINAL

Job = dict[str, Any]
#: The least number that has a digit other than 0 when it is shown.
SLOWEST = 0.1
#: Cells of the bar of a job in a line; errors and items in hand that are shown at most; characters of a message.
CELLS, MOST_ERRORS, MOST_ITEMS, MESSAGE_CHARS = 10, 3, 5, 100


def lines(job: Job) -> RenderableType:
    """Everything that `status` and `watch` show of a job."""
    # The empty text ends the bar's line: a bar ends no line of its own.
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
    """A job among others, in a line: its headline with a bar, what failed, its rate and how long it takes yet."""
    more = [pace(job["rate"])] if job["rate"] and job["state"] == "running" else []
    more += [f"{job['failed']:,} failed"] if job["failed"] else []
    more += [f"{left(job)} left"] if job["eta"] else []
    more += [job["stalled"]] if job["stalled"] else []
    return Text.assemble(cells(job), " ", headline(job), *(Text(" · ").append_text(plain(one)) for one in more))


def cells(job: Job) -> Text:
    """A bar of ten cells; only that of a job that is done is full."""
    full = math.floor(job["progress"] * CELLS)
    return Text("█" * full + "░" * (CELLS - full), style=STYLES.get(job["state"], "blue"))


def details(errors: Sequence[Job], held: Sequence[Job]) -> list[RenderableType]:
    """Lines of the first errors of a job, and of those of its items in hand that began first."""
    found: list[RenderableType] = []
    for error in [one for one in errors if one["failed"]][:MOST_ERRORS]:
        text = f"{error['type'] or error['kind']}: {' '.join((error['message'] or '').split())[:MESSAGE_CHARS]}"
        found.append(Text(f"{error['failed']:,} failed: ", style="red").append_text(plain(text)))
    for item in sorted(held, key=lambda one: one["started_at"] or "")[:MOST_ITEMS]:
        began = datetime.fromisoformat(item["started_at"]) if item["started_at"] else datetime.now(UTC)
        took = _duration((datetime.now(UTC) - began).total_seconds())
        step = f", {item['step']}" if item["step"] else ""
        found.append(plain(f"item {item['item']} for {took} on worker {item['worker']}{step}"))
    return found


def next_words(job: Job) -> Text:
    """What to type next."""
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
    """`17 name running 45.0 % of 1,000`."""
    name = plain(job["name"])
    name.stylize("bold")
    now = Text(f"is being stopped: {job['stopping']}") if job["stopping"] else state(job["state"])
    return Text.assemble(f"{job['id']} ", name, " ", now, f" {percentage(job)} of {job['total']:,}")


def percentage(job: Job) -> str:
    """The progress in percent, rounded down as the page rounds it: only a job that is done is at 100 %."""
    return "100 %" if job["progress"] == 1.0 else f"{math.floor(job['progress'] * 1000) / 10:.1f} %"


def hung(job: Job) -> list[Text]:
    """A line for each item that runs far longer than items of its actor usually do."""
    return [
        _warning("hung", f"{_item(one)} on worker {one['worker']}, for {_duration(one['seconds'])}, at {one['place']}")
        for one in job["hung"]
    ]


def _stages(job: Job) -> RenderableType:
    """A line for each stage."""
    grid = Table.grid(padding=(0, 1))
    for stage in job["stages"]:
        now = Text("stopping") if stage["stopping"] else state(stage["state"])
        counts = _counts(stage) if stage["total"] or stage["sealed"] else Text("not made yet")
        grid.add_row(str(stage["stage"]), plain(stage["name"]), now, _bar(stage, 20), counts)
    return grid


def _bar(job: Job, width: int) -> ProgressBar:
    style = STYLES.get(job["state"], "blue")
    return ProgressBar(total=1.0, completed=job["progress"], width=width, complete_style=style)


def _counts(job: Job) -> Text:
    """The states that have items, each with its number."""
    parts = [Text(f"{job[name]:,} {name}", style=STYLES.get(name, "")) for name in ITEM_STATES if job[name]]
    return Text(" · ").join(parts) if parts else Text("no items")


def _pace(job: Job) -> Text:
    """Rate, time left, retries, crashes and results that are not kept, as far as there are any."""
    parts = [] if job["rate"] is None else [pace(job["rate"])]
    if job["eta"]:
        parts.append(f"{'its stage ' if job['stages'] else ''}done in {left(job)}")
    words = {
        "retries": ("retry", "retries"), "crashes": ("crash", "crashes"),
        "unkept": ("result is not kept", "results are not kept"),
    }  # fmt: skip
    parts += [f"{job[name]:,} {forms[job[name] != 1]}" for name, forms in words.items() if job[name]]
    return Text(" · ".join(parts), style="dim")


def left(job: Job) -> str:
    """The time that is left of a job with an estimate; empty for one without."""
    if not job["eta"]:
        return ""
    span = datetime.fromisoformat(job["eta"]) - datetime.now(UTC)
    return str(timedelta(seconds=max(round(span.total_seconds()), 0)))


def age(time: str) -> str:
    """How long ago a time of the API was, in its largest unit."""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    size, unit = next(((n, u) for n, u in ((86_400, "d"), (3_600, "h"), (60, "min")) if seconds >= n), (1, "s"))
    return f"{max(seconds, 0) / size:.0f} {unit}"


def _warning(label: str, text: str) -> Text:
    return Text(f"{label}: ", style="yellow").append_text(plain(text))


def _item(one: Job) -> str:
    return f"item {one['item']}" + (f" of job {one['job']}" if "job" in one else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if minutes else f"{rest} s"


def pace(rate: float) -> str:
    """A rate in items per second, or per minute or hour where that would be 0.0."""
    units = [(1, "s"), (60, "min"), (3_600, "h")] if rate else [(1, "s")]
    seconds, unit = next((u for u in units if rate * u[0] >= SLOWEST), units[-1])
    return f"{rate * seconds:,.1f} items/{unit}"
