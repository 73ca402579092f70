"""The wording of numbers and times for readers, on the pages and in a terminal."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

#: The units of a time span, in seconds.
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
#: The smallest rate that is shown in a unit, and the smallest one without decimals.
LEAST_PACE, WHOLE_PACE = 0.1, 100
#: Amounts from the first and below the second are shown without decimals.
LEAST_WHOLE, LARGEST_WHOLE = 1_000, 1e15


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: `1 job`, `2 jobs`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def amount(value: float) -> str:
    """Return a number with thousands separators, or four digits of a small or very large one."""
    return f"{value:,.0f}" if LEAST_WHOLE <= value < LARGEST_WHOLE else f"{value:.4g}"


def percent(progress: float) -> str:
    """Return the progress in percent, rounded down: 99.96 % shows 99.9 %, and only a finished job shows 100 %."""
    return "100 %" if progress == 1 else f"{int(progress * 1000) / 10:.1f} %"


def rate(value: float | None, noun: str = "") -> str:
    """Return a rate in items per second, minute or hour, whichever is readable. `value`: items per second."""
    if value is None:
        return "–"
    pace, unit = value, "s"
    for more in ("min", "h"):
        if 0 < pace < LEAST_PACE:
            pace, unit = pace * 60, more
    return f"{pace:,.0f}{noun}/{unit}" if pace >= WHOLE_PACE else f"{pace:.1f}{noun}/{unit}"


def duration(seconds: float) -> str:
    """Return a time span in its two largest units."""
    whole = max(0, round(seconds))
    for (larger, unit), (smaller, lesser) in pairwise(UNITS):
        if whole >= larger:
            return f"{whole // larger} {unit} {whole % larger // smaller} {lesser}"
    return f"{whole} s"


def shown_state(job: Mapping[str, Any]) -> str:
    """Return the state of a job or a stage; also `stopping`, or `open` for today's standing job."""
    if job["stopping"]:
        return "stopping"
    is_open = job.get("standing") and job["state"] == "running" and not job["sealed"]
    return "open" if is_open else str(job["state"])


def parsed(time: str) -> datetime:
    """Return a time of the API as a datetime."""
    return datetime.fromisoformat(time)


def since(time: str) -> float:
    """Return the seconds since a time; negative for a future time."""
    return (datetime.now(UTC) - parsed(time)).total_seconds()


def left(job: Mapping[str, Any]) -> str:
    """Return the remaining time of a job at its rate, as text; empty if it is unknown."""
    return duration(-since(job["eta"])) if job["eta"] else ""
