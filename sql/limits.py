"""What a job may do at most, when, and how long it is kept, in the user's words and as columns of its row."""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from callboard.sql.json_values import iso

#: Items that must have ended before a share of failures means anything.
SAMPLE = 100
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LARGEST = 2**31 - 1
CENTURY = 36_525 * 86_400
#: Characters of an argument's name.
LONGEST_NAME = 100

SHARE = re.compile(r"(\d+(?:\.\d+)?) ?%(?: of (\d+))?")
RATE = re.compile(r"(\d+(?:\.\d+)?)/([smhd])")
WHOLE = re.compile(r"[0-9]{1,10}")
SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


@dataclass(frozen=True, slots=True)
class Limits:
    """Each may be None: no limit. Raises ValueError, with what is wrong and what is right, for what makes no sense.

    `max_failures`: items that may fail, as 10, or a share of those that ended, as "5%" (of at least 100) or "5% of
    1000". `concurrency`: items in RabbitMQ and in hand. `rate`: items started, as "10/s" or "100/m". `priority`: lower
    is first. `deadline` and `at` are times with a zone, ISO texts of such, or spans from now: a timedelta, "90s", "2h".
    `keep`: the span from its end until it is deleted, or "forever"; None: as CALLBOARD_KEEP says. `concurrency_by`:
    items in RabbitMQ and in hand with the same value of an argument, by its name or its position: "customer_id=5",
    "0=5", {"customer_id": 5}.
    """

    max_failures: int | str | None = None
    concurrency: int | None = None
    rate: str | None = None
    priority: int | None = None
    deadline: datetime | timedelta | str | None = None
    at: datetime | timedelta | str | None = None
    keep: timedelta | str | None = None
    concurrency_by: str | Mapping[Any, int] | None = None

    def __post_init__(self) -> None:
        by, width = _lanes(self.concurrency_by)
        object.__setattr__(self, "concurrency_by", None if by is None else f"{by}={width}")
        for name in ("deadline", "at"):
            object.__setattr__(self, name, moment(name, getattr(self, name)))
        self._order()
        if isinstance(self.keep, timedelta):
            object.__setattr__(self, "keep", f"{self.keep.total_seconds():.6f}".rstrip("0").rstrip(".") + "s")
        self.columns()

    def _order(self) -> None:
        at, deadline = self.at, self.deadline
        if isinstance(at, datetime) and isinstance(deadline, datetime) and deadline <= at:
            raise ValueError(
                f"nothing can start: the deadline, {iso(deadline)}, does not lie after at, {iso(at)}"
            )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """As `limits` of a job's row has them, which may be of a newer release."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})

    def words(self) -> dict[str, Any]:
        """What is set, as JSON has it."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: iso(value) if isinstance(value, datetime) else value
            for name, value in found.items()
            if value is not None
        }

    def columns(self) -> dict[str, Any]:
        """The columns of `jobs`."""
        count, share, sample = _failures(self.max_failures)
        by, width = _lanes(self.concurrency_by)
        return {
            "fail_count": count, "fail_share": share, "fail_sample": sample,
            "concurrency": _whole("concurrency", self.concurrency, 1), "rate": _rate(self.rate),
            "priority": _whole("priority", self.priority, -LARGEST) or 0, "deadline": self.deadline,
            "not_before": self.at, "keep": None if self.keep is None else span("keep", self.keep),
            "lane_by": by, "lane_width": width,
        }  # fmt: skip


def moment(name: str, given: datetime | timedelta | str | None) -> datetime | None:
    """A time with its zone; a span is one from now. Raises ValueError."""
    if given is None:
        return None
    with suppress(OverflowError):  # beyond the year 9999
        found = _read(given) if isinstance(given, str) else given
        if isinstance(found, timedelta) and found >= timedelta(0):
            return datetime.now(UTC) + found
        if isinstance(found, datetime) and found.tzinfo is not None:
            return found
    raise ValueError(
        f"{name} must be a time with its zone like 2027-01-31T12:00:00Z, or a span ahead like 90s, 5m, 2h, 1d; "
        f"not {given!r}"
    )


def span(name: str, given: timedelta | str) -> float:
    """The seconds of a span, of a hundred years at most; infinity for "forever". Raises ValueError."""
    if given == "forever":
        return math.inf
    if isinstance(given, str) and (found := SPAN.fullmatch(given)):
        seconds = float(found[1]) * SECONDS[found[2]]
        if 0 < seconds <= CENTURY:
            return seconds
    raise ValueError(f"{name} must be a span like 90s, 5m, 2h, 30d, or forever; not {given!r}")


def _read(text: str) -> datetime | timedelta | None:
    if span := SPAN.fullmatch(text):
        return timedelta(seconds=float(span[1]) * SECONDS[span[2]])
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _failures(given: int | str | None) -> tuple[int | None, float | None, int | None]:
    if given is None:
        return None, None, None
    if isinstance(given, str) and (found := SHARE.fullmatch(given.strip())):
        share, sample = float(found[1]) / 100, int(found[2] or SAMPLE)
        if 0 < share < 1 and 0 < sample <= LARGEST:
            return None, share, sample
    elif not isinstance(given, bool) and str(given).isdecimal() and 0 < int(given) <= LARGEST:
        return int(given), None, None
    raise ValueError(
        f"max_failures must be a number of items from 1, or a share like 5% or '5% of 1000'; not {given!r}"
    )


def _lanes(given: object) -> tuple[str | None, int | None]:
    """The argument whose values are told apart, and how many items of each."""
    if given is None:
        return None, None
    by: Any = None
    width: Any = None
    if isinstance(given, str):
        by, _, width = given.rpartition("=")
    elif isinstance(given, Mapping) and len(given) == 1:
        ((by, width),) = given.items()
    if type(by) in (str, int) and type(width) in (str, int):
        by, width = str(by).strip(), str(width).strip()
        fits = 0 < len(by) <= LONGEST_NAME and by.isprintable() and not by.startswith("-")
        if fits and WHOLE.fullmatch(width) and 0 < int(width) <= LARGEST:
            return by, int(width)
    raise ValueError(
        "concurrency_by must be the name or the position of one argument and how many items of each value, like "
        f"customer_id=5 or 0=5; not {given!r}"
    )


def _rate(given: str | None) -> float | None:
    if given is None:
        return None
    found = RATE.fullmatch(str(given).strip())
    rate = float(found[1]) / SECONDS[found[2]] if found else 0.0
    if not 1 / CENTURY <= rate <= LARGEST:  # the database could not reckon with others
        raise ValueError(f"rate must be like 10/s, 100/m or 5000/h; not {given!r}")
    return rate


def _whole(name: str, given: int | None, least: int) -> int | None:
    if given is not None and (type(given) is not int or not least <= given <= LARGEST):
        raise ValueError(f"{name} must be a whole number from {least} to {LARGEST}, not {given!r}")
    return given


NO_LIMITS = Limits()
