"""Points at which a worker kills itself, imported beside its actors.

CALLBOARD_TEST_KILL_POINTS names them, one for each process: a process dies at the first point at which none has died
yet, and with ``:3`` when it passes that point for the third time. CALLBOARD_TEST_DEATHS is the folder in which each
process leaves a file about its death.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

import dramatiq

from callboard.middleware.attempts import parking
from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.message.delivery import Delivery
from callboard.middleware.rabbitmq.acks import AckTracker
from callboard.middleware.tracking import runtime_of
from callboard.sql.writes import callbacks, claims, outcomes, publishing, saves, stages
from tests.support.boot_death import die, wait_for_boot

MODULE = "tests.faults.rig.kill_points"
KILL_POINTS, DEATHS = "CALLBOARD_TEST_KILL_POINTS", "CALLBOARD_TEST_DEATHS"
Key = tuple[int, int]


class Death(NamedTuple):
    """The point at which a process died, when (seconds since the epoch), the (job, item) pairs concerned, and how many
    attempts it had begun whose outcome was not on record.
    """

    point: str
    moment: float
    keys: list[Key]
    held: int


def deaths(folder: Path) -> list[Death]:
    """The deaths so far, in order."""
    found = (json.loads(path.read_text()) for path in sorted(folder.glob("*.died")))
    return [Death(point, moment, [(job, item) for job, item in keys], held) for point, moment, keys, held in found]


class Plan:
    """The point at which this process dies: the first of the `names` without a file in `folder`."""

    def __init__(self, names: list[str], folder: Path) -> None:
        self.folder = folder
        self.number = next((n for n in range(len(names)) if not self._file(n).exists()), None)
        name, _, times = (names[self.number] if self.number is not None else "").partition(":")
        self.name, self.left = name, int(times or 1)

    def install(self) -> None:
        """Put the point into the product's function."""
        if self.number is None:
            return
        point = POINTS[self.name]
        plain = getattr(point.holder, point.function)

        @functools.wraps(plain)
        def deadly(*args: Any, **kwargs: Any) -> Any:
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)  # `keys` reads it, too
            if not point.after:
                self._pass(point, point.keys(None, *args))
            result = plain(*args, **kwargs)
            if point.after:
                self._pass(point, point.keys(result, *args))
            return result

        setattr(point.holder, point.function, deadly)

    def _pass(self, point: "Point", keys: Iterable[Key] | None) -> None:
        if keys is None:
            return
        if point.seconds_later:
            Timer(point.seconds_later, self._count, (list(keys),)).start()
        else:
            self._count(list(keys))

    def _count(self, keys: list[Key]) -> None:
        """The point is passed once more: die if that is often enough."""
        self.left -= 1
        if self.left:
            return
        wait_for_boot()
        unfinished = self.folder / f"{os.getpid()}.dies"
        held = len(runtime_of(dramatiq.get_broker()).in_flight.attempts())
        unfinished.write_text(json.dumps([self.name, time.time(), keys, held]))
        unfinished.rename(self._file(self.number or 0))
        die()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:02}.died"


class Point(NamedTuple):
    """A call of a function, before it or `after` it. `keys` takes its result (None before) and its arguments, and
    gives the (job, item) pairs concerned, or None if this call is no such point.
    """

    holder: Any
    function: str
    keys: Callable[..., Iterable[Key] | None]
    after: bool = False
    seconds_later: float = 0.0


def _ended(_: None, conn: Any, events: Any, now: float) -> list[Key] | None:
    return [(event.job, event.item) for event in events if not event.crashed] or None


def _claimed(found: Any, conn: Any, job: int, item: int, *rest: Any) -> list[Key] | None:
    return [(job, item)] if found is not None and found.taken else None


def _acknowledged(_: None, tracker: AckTracker, acks: Any, nacks: Any) -> list[Key] | None:
    """Those that began. What was given back is acknowledged too, and runs later; and so is a copy that is dropped since
    its item has a row in `running`, of a worker that nobody takes for dead yet.
    """
    found = [tracker._deliveries.get(tag) for tag in (*acks, *nacks)]
    return [
        (one.stamp.job, one.stamp.item)
        for one in found
        if one and one.stamp and one.waiting is None and not one.dropped
    ] or None


def _kept(_: None, released: Iterable[tuple[Delivery, bool]]) -> list[Key]:
    return [(one.stamp.job, one.stamp.item) for one, refused in released if one.stamp and not refused]


def _done(result: Any, *_: Any) -> list[Key] | None:
    return None if result is None or result is False else []


POINTS = {
    # The actors returned, and nothing is recorded; the statement is under way, or just was.
    "outcome": Point(outcomes, "record", _ended),
    "flush": Point(outcomes, "record", _ended, seconds_later=0.001),
    # Run in a transaction that has not ended.
    "saved": Point(
        saves, "run", lambda _, __, events: [(event.job, event.item) for event in events] or None, after=True
    ),
    # Committed.
    "settle": Point(InFlight, "acknowledge", lambda _, __, entries: [entry.attempt.key for entry in entries]),
    # Not sent to RabbitMQ yet.
    "ack": Point(AckTracker, "_finish", _acknowledged),
    "running": Point(
        outcomes, "report_running", lambda _, __, ___, rows: [(row.job, row.item) for row in rows], after=True
    ),
    "claim": Point(claims, "claim_item", _claimed, after=True),
    # Committed, and the actor has not begun.
    "claimed": Point(
        InFlight, "_begin", lambda begun, _, attempt: [attempt.key] if begun and attempt.reported else None, after=True
    ),
    # Not acknowledged yet.
    "parked": Point(parking, "release", _kept),
    # Confirmed, and still in the outbox.
    "sent": Point(publishing, "confirm_outbox", lambda _, __, sent: [(out.job, out.item) for out in sent]),
    # Claimed, and nothing is sent.
    "called": Point(
        callbacks, "claim_callbacks", lambda found, *_: [(one.job, 0) for one in found] or None, after=True
    ),
    # The receiver has it, and that is not recorded.
    "answered": Point(
        callbacks, "mark_delivered", lambda _, __, callback: [(callback.job, 0)] if callback.url else None
    ),
    # Delivered in a transaction that has not ended.
    "delivered": Point(
        callbacks, "mark_delivered", lambda _, __, callback: [(callback.job, 0)] if callback.actor else None, after=True
    ),
    # Committed.
    "stage claimed": Point(stages, "claim_stage", _done, after=True),
    "stage stored": Point(stages, "store_inputs", _done, after=True),
    "stage sealed": Point(stages, "seal_stage", _done, after=True),
}

if os.environ.get(KILL_POINTS):
    Plan(os.environ[KILL_POINTS].split(","), Path(os.environ[DEATHS])).install()
