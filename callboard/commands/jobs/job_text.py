"""A job in the terminal: a headline, a bar, its parts."""

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from callboard.commands.output import STYLES, plain, state
from callboard.sql.states import ITEM_STATES, JOB_FINAL

Job = dict[str, Any]


def lines(job: Job) -> RenderableType:
    """All that `status` and `watch` show of a job."""
    bar = ProgressBar(total=1.0, completed=job["progress"], width=60, complete_style=_style(job))
    # A bar ends no line of its own.
    parts: list[RenderableType] = [headline(job), bar, Text(), counts(job), pace(job)]
    if job["stages"]:
        parts.append(stages(job))
    told = ("reason",) if job["state"] in JOB_FINAL else ("step", "reason")
    parts += [Text(f"{name}: ").append_text(plain(job[name])) for name in told if job[name]]
    if job["limits"]:
        told_limits = ", ".join(f"{name} {value}" for name, value in job["limits"].items())
        parts.append(Text("limits: ").append_text(plain(told_limits)))
    if job["stalled"]:
        parts.append(Text("stalled: ", style="yellow").append_text(plain(job["stalled"])))
    return Group(*parts, *hung(job))


def stages(job: Job) -> RenderableType:
    """A line for each stage."""
    grid = Table.grid(padding=(0, 1))
    for stage in job["stages"]:
        now = Text("stopping") if stage["stopping"] else state(stage["state"])
        bar = ProgressBar(total=1.0, completed=stage["progress"], width=20, complete_style=_style(stage))
        parts = (
            counts(stage) if stage["total"] else Text("not made yet" if not stage["sealed"] else "no items")
        )
        grid.add_row(str(stage["stage"]), plain(stage["name"]), now, bar, parts)
    return grid


def hung(job: Job) -> list[Text]:
    """A line for each item that takes far longer than its actor usually does."""
    return [
        Text("hung: ", style="yellow").append_text(
            plain(f"{_item(one)} on worker {one['worker']}, for {_span(one['seconds'])}, at {one['place']}")
        )
        for one in job["hung"]
    ]


def headline(job: Job) -> Text:
    """`17 name running 45.0 %`."""
    name = plain(job["name"])
    name.stylize("bold")
    percent = f"{percentage(job)} of {job['total']:,}"
    now = Text(f"is being stopped: {job['stopping']}") if job["stopping"] else state(job["state"])
    return Text.assemble(f"{job['id']} ", name, " ", now, f" {percent}")


def percentage(job: Job) -> str:
    """As the page says it, rounded down: a whole 100 % is said of nothing that isn't done."""
    return "100 %" if job["progress"] == 1.0 else f"{math.floor(job['progress'] * 1000) / 10:.1f} %"


def counts(job: Job) -> Text:
    """The states that have items, each with its number."""
    shown = [name for name in ITEM_STATES if job[name]]
    parts = [Text(f"{job[name]:,} {name}", style=STYLES.get(name, "")) for name in shown]
    return Text(" · ").join(parts) if parts else Text("no items")


def pace(job: Job) -> Text:
    """Rate, time left, retries and crashes, as far as there are any."""
    parts = [] if job["rate"] is None else [f"{job['rate']:,.1f} items/s"]
    if job["eta"]:
        parts.append(f"{'its stage ' if job['stages'] else ''}done in {_left(job['eta'])}")
    words = {"retries": "retry", "crashes": "crash"}
    parts += [f"{job[many]:,} {one if job[many] == 1 else many}" for many, one in words.items() if job[many]]
    return Text(" · ".join(parts), style="dim")


def _item(one: Job) -> str:
    return f"item {one['item']}" + (f" of job {one['job']}" if "job" in one else "")


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if minutes else f"{rest} s"


def _left(eta: str) -> str:
    left = datetime.fromisoformat(eta) - datetime.now(UTC)
    return str(timedelta(seconds=max(round(left.total_seconds()), 0)))


def _style(job: Job) -> str:
    return STYLES.get(job["state"], "blue")
