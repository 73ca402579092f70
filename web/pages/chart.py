"""The chart of a job: ended and failed items over time, with marks for its actions."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any

from callboard.web.pages import words

Row = Mapping[str, Any]

#: Columns of the chart, and rows of its table.
COLUMNS, TABLE_ROWS = 60, 12
#: Minimum seconds of a run, and minimum number of its points, for a chart.
LEAST_SECONDS, LEAST_POINTS = 10.0, 4


def columns(points: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the columns of the chart: start, end, rate, number of failed items, and position in percent.

    Empty if the run is too short or no item has ended.
    """
    whole = _whole(points)
    if not whole:
        return []
    known = [(_seconds(points[0]["at"], one["at"]), one) for one in points]
    begin, size = words.parsed(points[0]["at"]), whole / COLUMNS
    edges = [(begin + timedelta(seconds=n * size), *_at(known, n * size)) for n in range(COLUMNS + 1)]
    found: list[dict[str, Any]] = [
        {
            "from": from_.isoformat(),
            "to": to.isoformat(),
            "ended": round(ended),
            # After a manual retry fewer items have ended.
            "rate": max(ended - ended_before, 0.0) / size,
            "failed_items": max(round(failed) - round(failed_before), 0),
            "failed_rate": max(failed - failed_before, 0.0) / size,
        }
        for (from_, ended_before, failed_before), (to, ended, failed) in pairwise(edges)
    ]
    top = max(one["rate"] for one in found)
    if not top:  # no item has ended
        return []
    for place, one in enumerate(found):
        one |= {
            "x": round(100 * place / COLUMNS, 3),
            "width": round(80 / COLUMNS, 3),
            "height": round(100 * one["rate"] / top, 2),
            "failed": round(100 * min(one["failed_rate"], one["rate"]) / top, 2),
        }
    return found


def _at(known: Sequence[tuple[float, Row]], second: float) -> tuple[float, float]:
    """Return how many items had ended and failed at a second of the run, interpolated between two points."""
    for (before, first), (after, last) in pairwise(known):
        if second <= after:
            share = (second - before) / (after - before) if after > before else 1.0
            ended, failed = (first[name] + share * (last[name] - first[name]) for name in ("ended", "failed"))
            return ended, failed
    return float(known[-1][1]["ended"]), float(known[-1][1]["failed"])


def rows(found: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the columns of the chart as rows of a table, with fewer and longer time spans."""
    size = max(1, -(-len(found) // TABLE_ROWS))
    groups = [found[at : at + size] for at in range(0, len(found), size)]
    return [
        {
            "from": group[0]["from"],
            "to": group[-1]["to"],
            "rate": sum(one["rate"] for one in group) / len(group),
            "failed_items": sum(one["failed_items"] for one in group),
            "ended": group[-1]["ended"],
        }
        for group in groups
    ]


def marks(samples: Sequence[Row], history: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the actions on the job while it ran, each with its position on the chart in percent."""
    whole = _whole(samples)
    if not whole:
        return []
    found = [(_seconds(samples[0]["at"], one["done_at"]) / whole, one) for one in history]
    return [{"x": round(100 * share, 3), "action": one} for share, one in found if 0 <= share <= 1]


def _whole(samples: Sequence[Row]) -> float:
    """Return the seconds that a job ran; 0 if it is too short for a chart, or has too few points."""
    whole = _seconds(samples[0]["at"], samples[-1]["at"]) if len(samples) >= LEAST_POINTS else 0.0
    return whole if whole >= LEAST_SECONDS else 0.0


def _seconds(first: str, last: str) -> float:
    return (words.parsed(last) - words.parsed(first)).total_seconds()
