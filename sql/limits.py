"""The limits of a job, in the form of its submitter and as columns of its row."""

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from callboard.sql.json_values import iso

#: Items that must have ended before a share of failures is checked, unless the limit gives a number.
MIN_SHARE_ITEMS = 100
#: The seconds of each unit of a span or a rate.
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
#: The greatest whole number that a column can store.
MAX_INT = 2**31 - 1
#: The limits that are times.
TIMES = ("deadline", "at")
#: The longest span: a hundred years.
MAX_SPAN_SECONDS = 36_525 * 86_400
#: A time must be between these years, both excluded.
YEARS = 1, 9999
#: The most characters of an argument's name.
MAX_NAME_CHARACTERS = 100

SHARE_PATTERN = re.compile(r"(\d+(?:\.\d+)?) ?%(?: of (\d+))?")
RATE_PATTERN = re.compile(r"(\d+(?:\.\d+)?)/([smhd])")
WHOLE_PATTERN = re.compile(r"[0-9]{1,10}")
SPAN_PATTERN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a job; None means no limit. Raises ValueError for an invalid value; the text says what is wrong and
    what is allowed.

    `max_failures`: how many items may fail, as 10 or 0, or a share of the ended items, as "5%" (of at least 100) or "5%
    of 1000". `concurrency`: the most items in RabbitMQ or running. `rate`: the most items started, as "10/s" or
    "100/m". `priority`: lower runs first. `deadline` and `at`: a time with a zone, its ISO text, or a span from now: a
    timedelta, "90s", "2h". `keep`: the span from a job's end to its deletion, or "forever"; None: the value of
    CALLBOARD_KEEP. `concurrency_by`: the most items in RabbitMQ or running with the same value of an argument, by its
    name or its position: "customer_id=5", "0=5", {"customer_id": 5}. `lanes`: the most values of that argument with
    items in RabbitMQ or running.
    """

    max_failures: int | str | None = None
    concurrency: int | None = None
    rate: str | None = None
    priority: int | None = None
    deadline: datetime | timedelta | str | None = None
    at: datetime | timedelta | str | None = None
    keep: timedelta | str | None = None
    concurrency_by: str | Mapping[Any, int] | None = None
    lanes: int | None = None

    def __post_init__(self) -> None:
        by, width = _parse_lanes(self.concurrency_by)
        object.__setattr__(self, "concurrency_by", None if by is None else f"{by}={width}")
        for name in TIMES:
            object.__setattr__(self, name, parse_time(name, getattr(self, name)))
        at, deadline = self.at, self.deadline
        if (isinstance(at, datetime) and isinstance(deadline, datetime) and deadline <= at) or (
            isinstance(at, timedelta) and isinstance(deadline, timedelta) and deadline <= at
        ):
            raise ValueError(
                f"deadline must be later than at: {_time_text(deadline)} is not later than {_time_text(at)}"
            )
        if isinstance(self.keep, timedelta):
            object.__setattr__(self, "keep", f"{self.keep.total_seconds():.6f}".rstrip("0").rstrip(".") + "s")
        self._columns()
        if self.priority == 0:  # the default of every job
            object.__setattr__(self, "priority", None)

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Read the column `limits` of a job's row; limits of a newer release are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if name in known})

    @classmethod
    def check_names(cls, given: Iterable[str]) -> None:
        """Raise ValueError for a name that is no limit."""
        known = {field.name for field in fields(cls)}
        if strange := sorted(set(given) - known):
            raise ValueError(f"there is no limit {strange[0]!r}: only {', '.join(sorted(known))}")

    def as_json(self) -> dict[str, Any]:
        """Return the limits that are set, as the value of the column `limits`."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: _time_text(value) if name in TIMES else value for name, value in found.items() if value is not None
        }

    @property
    def lane_by(self) -> str | None:
        """The argument that decides an item's lane: a name, or a position; None without lanes."""
        return _parse_lanes(self.concurrency_by)[0]

    @property
    def has_spans(self) -> bool:
        """Whether `deadline` or `at` is a span from now."""
        return any(isinstance(getattr(self, name), timedelta) for name in TIMES)

    def counted_from(self, now: datetime) -> Self:
        """Return the limits with spans replaced by times, as a row stores them. Raises ValueError."""
        deadline, at = (now + time if isinstance(time, timedelta) else time for time in (self.deadline, self.at))
        return replace(self, deadline=deadline, at=at)

    def columns(self) -> dict[str, Any]:
        """Return the values of the limits' other columns in `jobs`. Times must not be spans: see `counted_from`.

        Raises ValueError for `lanes` without `concurrency_by`.
        """
        if self.lanes is not None and self.concurrency_by is None:
            raise ValueError(
                "lanes limits the values of the argument that concurrency_by names: give that too, like customer_id=5"
            )
        return self._columns()

    def _columns(self) -> dict[str, Any]:
        count, share, sample = _parse_failures(self.max_failures)
        by, width = _parse_lanes(self.concurrency_by)
        return {
            "fail_count": count, "fail_share": share, "fail_sample": sample,
            "concurrency": _check_whole("concurrency", self.concurrency, 1), "rate": _parse_rate(self.rate),
            "priority": _check_whole("priority", self.priority, -MAX_INT) or 0, "deadline": self.deadline,
            "not_before": self.at, "keep": None if self.keep is None else parse_span("keep", self.keep),
            "lane_by": by, "lane_width": width, "lanes": _check_whole("lanes", self.lanes, 1),
        }  # fmt: skip


def parse_time(name: str, given: datetime | timedelta | str | None) -> datetime | timedelta | None:
    """Read a time with its zone, or a span from now; None for None. Raises ValueError, which names the limit.

    A span stays a span: the database counts it from its own time, because this machine's clock may be wrong.
    """
    if given is None:
        return None
    with suppress(OverflowError):
        found = _parse_when(given) if isinstance(given, str) else given
        if isinstance(found, timedelta) and timedelta(0) <= found <= timedelta(seconds=MAX_SPAN_SECONDS):
            return found
        # The year has four digits in every zone: otherwise a client could not read it.
        if isinstance(found, datetime) and found.tzinfo and YEARS[0] < found.astimezone(UTC).year < YEARS[1]:
            return found
    raise ValueError(
        f"{name} must be a time with its zone like 2027-01-31T12:00:00Z, before the year 9999, or a span ahead like "
        "90s, 5m, 2h, 1d; "
        f"not {given!r}"
    )


def parse_span(name: str, given: timedelta | str) -> float:
    """Return the seconds of a span, at most a hundred years; infinity for "forever". Raises ValueError."""
    if given == "forever":
        return math.inf
    if isinstance(given, str) and (found := SPAN_PATTERN.fullmatch(given)):
        seconds = float(found[1]) * UNIT_SECONDS[found[2]]
        if 0 < seconds <= MAX_SPAN_SECONDS:
            return seconds
    raise ValueError(f"{name} must be a span like 90s, 5m, 2h, 30d, or forever; not {given!r}")


def check_seconds(name: str, given: object) -> None:
    """Raise ValueError for anything but a number of seconds from 0 to a hundred years."""
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(given, bool | str | bytes) and 0 <= float(given) <= MAX_SPAN_SECONDS:  # type: ignore[arg-type]
            return
    raise ValueError(f"{name} takes a number of seconds from 0, not {given!r:.100}")


def _time_text(time: object) -> str:
    return f"{time.total_seconds():g}s" if isinstance(time, timedelta) else str(iso(time))  # type: ignore[arg-type]


def _parse_when(text: str) -> datetime | timedelta | None:
    if span := SPAN_PATTERN.fullmatch(text):
        return timedelta(seconds=float(span[1]) * UNIT_SECONDS[span[2]])
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _parse_failures(given: int | str | None) -> tuple[int | None, float | None, int | None]:
    if given is None:
        return None, None, None
    if isinstance(given, str) and (found := SHARE_PATTERN.fullmatch(given.strip())):
        share, sample = float(found[1]) / 100, int(found[2] or MIN_SHARE_ITEMS)
        if 0 < share < 1 and 0 < sample <= MAX_INT:
            return None, share, sample
    elif not isinstance(given, bool) and str(given).isdecimal() and 0 <= int(given) <= MAX_INT:
        return int(given), None, None
    raise ValueError(
        f"max_failures must be a number of items from 0, or a share like 5% or '5% of 1000'; not {given!r}"
    )


def _parse_lanes(given: object) -> tuple[str | None, int | None]:
    """Return the argument whose values are lanes, and the most items of a lane; (None, None) for None."""
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
        fits = 0 < len(by) <= MAX_NAME_CHARACTERS and by.isprintable() and not by.startswith("-")
        if fits and WHOLE_PATTERN.fullmatch(width) and 0 < int(width) <= MAX_INT:
            return by, int(width)
    raise ValueError(
        "concurrency_by must be the name or the position of one argument and how many items of each value, like "
        f"customer_id=5 or 0=5; not {given!r}"
    )


def _parse_rate(given: str | None) -> float | None:
    if given is None:
        return None
    found = RATE_PATTERN.fullmatch(str(given).strip())
    rate = float(found[1]) / UNIT_SECONDS[found[2]] if found else 0.0
    if not 1 / MAX_SPAN_SECONDS <= rate <= MAX_INT:  # the database can't calculate with others
        raise ValueError(f"rate must be like 10/s, 100/m or 5000/h; not {given!r}")
    return rate


def _check_whole(name: str, given: int | None, least: int) -> int | None:
    if given is not None and (type(given) is not int or not least <= given <= MAX_INT):
        raise ValueError(f"{name} must be a whole number from {least} to {MAX_INT}, not {given!r}")
    return given


NO_LIMITS = Limits()
