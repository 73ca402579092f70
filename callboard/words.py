"""How numbers and times are said to readers, on the pages and in a terminal."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

#: The units of a time span, in seconds.
UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
#: The least rate that is shown in a unit, and the least that is shown without decimals.
LEAST_PACE, WHOLE_PACE = 0.1, 100
#: Amounts that are shown without decimals: from the first, and below the second.
LEAST_WHOLE, LARGEST_WHOLE = 1_000, 1e15


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def amount(value: float) -> str:
    """A number with its thousands apart, or four digits of one that is small or very large."""
    return f"{value:,.0f}" if LEAST_WHOLE <= value < LARGEST_WHOLE else f"{value:.4g}"


def percent(progress: float) -> str:
    """Rounded down: only a job that is done shows 100 %, and 99.96 % shows 99.9 %."""
    return "100 %" if progress == 1 else f"{int(progress * 1000) / 10:.1f} %"


def rate(value: float | None, noun: str = "") -> str:
    """Items a second, a minute or an hour, whichever is a number to read."""
    if value is None:
        return "–"
    pace, unit = value, "s"
    for more in ("min", "h"):
        if 0 < pace < LEAST_PACE:
            pace, unit = pace * 60, more
    return f"{pace:,.0f}{noun}/{unit}" if pace >= WHOLE_PACE else f"{pace:.1f}{noun}/{unit}"


def duration(seconds: float) -> str:
    """A time span, in its two largest units."""
    whole = max(0, round(seconds))
    for (larger, unit), (smaller, lesser) in pairwise(UNITS):
        if whole >= larger:
            return f"{whole // larger} {unit} {whole % larger // smaller} {lesser}"
    return f"{whole} s"


def shown_state(job: Mapping[str, Any]) -> str:
    """The state of a job or a stage; that it is being stopped, or takes what is sent to its actor today."""
    if job["stopping"]:
        return "stopping"
    is_open = job.get("standing") and job["state"] == "running" and not job["sealed"]
    return "open" if is_open else str(job["state"])


def parsed(time: str) -> datetime:
    """Parse a time of the API."""
    return datetime.fromisoformat(time)


def since(time: str) -> float:
    """Seconds since a time; negative for one to come."""
    return (datetime.now(UTC) - parsed(time)).total_seconds()


def left(job: Mapping[str, Any]) -> str:
    """Return how long a job still takes at its rate; an empty text if that is not known."""
    return duration(-since(job["eta"])) if job["eta"] else ""
