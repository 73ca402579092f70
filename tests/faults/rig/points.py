"""Points at which a worker kills itself, imported beside the actors and steered by the environment.

CALLBOARD_TEST_POINTS names them, a process each: a process dies at the first that none has died at before, and with
``:3`` only when it passes it for the third time. CALLBOARD_TEST_MARKS is the folder where each death leaves a mark.
CALLBOARD_TEST_HURRY makes workers be missed, lost messages be found, and callbacks be claimed anew after so many
seconds.
"""

import functools
import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

from callboard.middleware.attempts.in_flight import InFlight
from callboard.middleware.message import stamp
from callboard.middleware.process import heartbeat
from callboard.middleware.rabbitmq.acks import AckTracker
from callboard.middleware.sweep import sweep
from callboard.sql import timings
from callboard.sql.writes import callbacks, claims, outcomes, publishing, stages
from tests.support.boot_death import booted, die

HURRY, POINTS, MARKS = "CALLBOARD_TEST_HURRY", "CALLBOARD_TEST_POINTS", "CALLBOARD_TEST_MARKS"
Key = tuple[int, int]


class Mark(NamedTuple):
    """A death: at which point, when, and which (job, item) were concerned."""

    point: str
    moment: float
    keys: list[Key]


def marks(folder: Path) -> list[Mark]:
    """The deaths so far, in order."""
    found = (json.loads(path.read_text()) for path in sorted(folder.glob("*.died")))
    return [Mark(point, moment, [(job, item) for job, item in keys]) for point, moment, keys in found]


def hurry(seconds: float) -> None:
    """Miss workers, and find lost messages, sooner; and take over their callbacks."""
    timings.DEAD_AFTER_SECONDS = seconds
    heartbeat.BEAT_SECONDS = seconds / 8
    sweep.SEARCH_SECONDS = sweep.SAMPLE_SECONDS = seconds / 2
    sweep.PERIOD_SECONDS = 0.5
    callbacks.LEASE = callbacks.BRIEF = seconds


class Deaths:
    """The point at which this process dies."""

    def __init__(self, plan: list[str], folder: Path) -> None:
        self.folder = folder
        self.number = next((n for n in range(len(plan)) if not self._mark(n).exists()), None)
        name, _, times = (plan[self.number] if self.number is not None else "").partition(":")
        self.name, self.left = name, int(times or 1)

    def _mark(self, number: int) -> Path:
        return self.folder / f"{number:02}.died"

    def passes(self, name: str, keys: Iterable[Key]) -> None:
        """Die if this is the point, and the time."""
        if name != self.name or self.number is None:
            return
        self.left -= 1
        if self.left:
            return
        booted()
        unfinished = self.folder / f"{os.getpid()}.dies"
        unfinished.write_text(json.dumps([name, time.time(), list(keys)]))
        unfinished.rename(self._mark(self.number))
        die()


Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def _around(holder: Any, name: str, wrap: Wrap) -> None:
    plain = getattr(holder, name)
    setattr(holder, name, functools.wraps(plain)(wrap(plain)))


def _outcomes(deaths: Deaths) -> Wrap:
    def wrap(record: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(conn: Any, events: Any, now: float) -> Any:
            keys = [(event.job, event.item) for event in events if not event.crashed]
            if keys:
                deaths.passes("outcome", keys)  # the actors returned
                Timer(
                    0.001, deaths.passes, ("flush", keys)
                ).start()  # the statement is under way, or just was
            return record(conn, events, now)

        return recorded

    return wrap


def _settled(deaths: Deaths) -> Wrap:
    def wrap(settle: Callable[..., Any]) -> Callable[..., Any]:
        def settled(in_flight: InFlight, entries: Any) -> None:
            deaths.passes("settle", [entry.attempt.key for entry in entries])  # committed
            settle(in_flight, entries)

        return settled

    return wrap


def _acked(deaths: Deaths) -> Wrap:
    def wrap(settle: Callable[..., Any]) -> Callable[..., Any]:
        def settled(tracker: AckTracker, acks: Any, nacks: Any) -> None:
            found = (stamp.read(tracker.open[tag].options) for tag in (*acks, *nacks) if tag in tracker.open)
            deaths.passes("ack", [(mark.job, mark.item) for mark in found if mark])  # not sent yet
            settle(tracker, acks, nacks)

        return settled

    return wrap


def _reported(deaths: Deaths) -> Wrap:
    def wrap(report: Callable[..., Any]) -> Callable[..., Any]:
        def reported(conn: Any, worker: int, running: Any) -> None:
            report(conn, worker, running)
            deaths.passes("running", [(row.job, row.item) for row in running])

        return reported

    return wrap


def _claimed(deaths: Deaths) -> Wrap:
    def wrap(claim: Callable[..., Any]) -> Callable[..., Any]:
        def claimed(conn: Any, job: int, item: int, *rest: int) -> Any:
            found = claim(conn, job, item, *rest)
            if found is not None and found.taken:
                deaths.passes("claim", [(job, item)])
            return found

        return claimed

    return wrap


def _begun(deaths: Deaths) -> Wrap:
    def wrap(may_run: Callable[..., Any]) -> Callable[..., Any]:
        def begins(in_flight: InFlight, mark: stamp.Stamp, attempt: Any) -> Any:
            may = may_run(in_flight, mark, attempt)
            if may:
                deaths.passes("claimed", [attempt.key])  # committed, and the actor has not begun
            return may

        return begins

    return wrap


def _parked(deaths: Deaths) -> Wrap:
    def wrap(park: Callable[..., Any]) -> Callable[..., Any]:
        def parked(conn: Any, messages: Any) -> None:
            park(conn, messages)
            deaths.passes("parked", [(job, item) for job, item, _ in messages])  # not acknowledged yet

        return parked

    return wrap


def _settled_outbox(deaths: Deaths) -> Wrap:
    def wrap(settle: Callable[..., Any]) -> Callable[..., Any]:
        def settled(conn: Any, sent: Any) -> None:
            deaths.passes("sent", [(out.job, out.item) for out in sent])  # confirmed, and still in the outbox
            settle(conn, sent)

        return settled

    return wrap


def _called(deaths: Deaths) -> Wrap:
    def wrap(claim: Callable[..., Any]) -> Callable[..., Any]:
        def claimed(*given: Any, **more: Any) -> Any:
            found = claim(*given, **more)
            if found:
                deaths.passes("called", [(one.job, 0) for one in found])  # claimed, and nothing sent
            return found

        return claimed

    return wrap


def _answered(deaths: Deaths) -> Wrap:
    def wrap(settle: Callable[..., Any]) -> Callable[..., Any]:
        def settled(conn: Any, callback: Any) -> Any:
            if callback.url:
                deaths.passes("answered", [(callback.job, 0)])  # the receiver has it, and it is not recorded
            found = settle(conn, callback)
            if callback.actor:
                deaths.passes("told", [(callback.job, 0)])  # delivered in a transaction that has not ended
            return found

        return settled

    return wrap


def _stage(deaths: Deaths, point: str) -> Wrap:
    def wrap(step: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*args: Any, **kwargs: Any) -> Any:
            done = step(*args, **kwargs)
            if done is not None and done is not False:
                deaths.passes(point, [])  # committed
            return done

        return stepped

    return wrap


def install(deaths: Deaths) -> None:
    """Lay the points into the product's way."""
    _around(outcomes, "record", _outcomes(deaths))
    _around(outcomes, "report_running", _reported(deaths))
    _around(claims, "claim_item", _claimed(deaths))
    _around(claims, "park", _parked(deaths))
    _around(publishing, "settle_outbox", _settled_outbox(deaths))
    _around(callbacks, "claim_callbacks", _called(deaths))
    _around(callbacks, "settle_callback", _answered(deaths))
    _around(InFlight, "acknowledge", _settled(deaths))
    _around(InFlight, "_may_run", _begun(deaths))
    _around(AckTracker, "_settle", _acked(deaths))
    _around(stages, "claim", _stage(deaths, "stage claimed"))
    _around(stages, "store", _stage(deaths, "stage stored"))
    _around(stages, "seal", _stage(deaths, "stage sealed"))


if os.environ.get(HURRY):
    hurry(float(os.environ[HURRY]))
if os.environ.get(POINTS):
    install(Deaths(os.environ[POINTS].split(","), Path(os.environ[MARKS])))
