"""The journal: many events become one transaction, and no message is acknowledged before its outcome is committed.

Worker threads hand over what ended and go on; senders hand over what they send and wait. One thread writes.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.journal.counter_repair import repair_counters
from callboard.middleware.journal.running_rows import LOOK_SECONDS, RunningRows
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.failure import describe
from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.process import Process
from callboard.sql.errors import DATA_ERRORS, TRANSIENT, is_counter_drift
from callboard.sql.pool import Conn
from callboard.sql.rows import Event, JobControl, NewItem, Outgoing
from callboard.sql.writes import outcomes

log = logging.getLogger("callboard.journal")

T = TypeVar("T")
_complain = OutageLog(
    log,
    "the database can't be written to, trying on; nothing is lost: %s",
    "the database can be written to again, after %.1f s",
)
_alarm = OutageLog(
    log,
    "the database does not let anything be recorded, trying on; nothing is lost: %s",
    "the database lets outcomes be recorded again, after %.1f s",
)

#: Seconds for which events gather; a flush does not wait them out when nothing more can come.
WINDOW = 0.020
#: Events in one transaction.
BATCH = 1_000
#: Tries in a row that may end with an error nobody thought of, and the seconds between two.
TRIES = 4
REST = 0.25


class Uncertain(psycopg.OperationalError):
    """The connection broke in the COMMIT of what plain sends wait for; written again it might be there twice."""


@dataclass(slots=True, eq=False)
class Entry:
    """An attempt that ended, how, and whether its message is to be dead-lettered."""

    attempt: Attempt
    event: Event
    dead_letter: bool


@dataclass(slots=True, eq=False)
class Send:
    """An item that a plain send waits to have stored."""

    item: NewItem
    stored: Future[Outgoing] = field(default_factory=Future)


class Attempts(Protocol):
    """The attempts in flight in this process, as the journal needs them (`InFlight`)."""

    def attempts(self) -> list[Attempt]:
        """The attempts whose outcome is not committed."""

    def expects_more(self, ended: int) -> bool:
        """Whether the process holds more messages than the `ended` ones, so that a flush is worth waiting for."""

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Acknowledge the messages of these attempts: their outcomes are committed."""

    def apply_controls(self, controls: Sequence[JobControl]) -> None:
        """Take the control states of jobs whose outcomes were committed."""


@dataclass(slots=True)
class Journal:
    """See the module. `store` stores plain sends; `on_room` is called when a job with limits may publish more,
    `on_broken` when the thread ends by an error that does not pass.
    """

    process: Process
    attempts: Attempts
    store: Callable[[Conn, Sequence[Send]], None]
    on_room: Callable[[], None] = lambda: None
    on_broken: Callable[[BaseException], None] = lambda _: None
    _entries: list[Entry] = field(default_factory=list)
    _sends: list[Send] = field(default_factory=list)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _closing: bool = False
    _writing: bool = False
    _listeners: list[Callable[[], None]] = field(default_factory=list)
    _running_rows: RunningRows = field(init=False)

    def __post_init__(self) -> None:
        self._running_rows = RunningRows(self.process, _complain)

    def add(self, entry: Entry) -> None:
        """Take an attempt that ended. Never blocks, never raises."""
        with self._wake:
            self._entries.append(entry)
            waiting = len(self._entries)
            if waiting == 1 or not self.attempts.expects_more(waiting):
                self._start()
                self._wake.notify()

    def send(self, item: NewItem) -> Future[Outgoing]:
        """Take an item to be stored; the future gives it as stored, or why it was not."""
        waiting = Send(item)
        with self._wake:
            self._sends.append(waiting)
            self._start()
            self._wake.notify()
        return waiting.stored

    def close(self, timeout: float) -> bool:
        """Write what there is and end the thread; False when that took longer than `timeout` seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def when_written(self, tell: Callable[[], None]) -> None:
        """Call `tell`, once, when everything noted so far is committed and settled, or nobody is there to do it."""
        with self._wake:
            busy = self._thread is not None and self._thread.is_alive()
            if not busy or not (self._entries or self._writing):
                tell()
            else:
                self._listeners.append(tell)

    @property
    def pending(self) -> int:
        """Events that are not committed yet."""
        return len(self._entries)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="callboard-journal", daemon=True)
            self._thread.start()

    def watch(self) -> None:
        """Have the thread look after what is in hand, before anything ended."""
        with self._wake:
            self._start()

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Until it is closed. An error that nobody thought of may pass: what it struck is written again, which changes
        nothing if it was. One that doesn't pass ends the thread, and not in silence.
        """
        errors = 0
        while True:
            try:
                if not self._turn():
                    return
                errors = 0
            except BaseException as error:  # whatever it is: without this thread nothing is acknowledged
                errors += 1
                if errors == TRIES:
                    self._end(error)
                    return
                log.warning("the journal met an error it doesn't know, and tries again", exc_info=True)
                time.sleep(REST)

    def _turn(self) -> bool:
        """Write what gathered; False when that was the last."""
        entries, sends = self._gather()
        try:
            if sends:
                self._store(sends)
            if entries:
                self._record(_dedupe(entries, later=self._put_back))
        except BaseException as error:
            self._take_back(entries)
            self._tell(sends, error)
            raise
        self._running_rows.report(self.attempts.attempts)
        with self._wake:
            self._writing = False
            if not self._entries:
                while self._listeners:
                    self._listeners.pop()()
            return not (self._closing and not self._entries and not self._sends)

    def _end(self, error: BaseException) -> None:
        """Those who wait are told. Outcomes stay, unacknowledged, so their messages come again elsewhere."""
        log.critical("the journal can't go on; %d outcomes are not recorded", self.pending, exc_info=error)
        with self._wake:
            sends, self._sends = self._sends, []
            listeners, self._listeners = self._listeners, []
        self._tell(sends, error)
        for tell in listeners:
            tell()
        self.on_broken(error)

    def _gather(self) -> tuple[list[Entry], list[Send]]:
        with self._wake:
            if not self._entries and not self._sends and not self._closing:
                self._wake.wait(LOOK_SECONDS if self.process.worker else 1.0)
            deadline = time.monotonic() + WINDOW
            while self._entries and not self._sends and not self._closing:
                left = deadline - time.monotonic()
                if left <= 0 or not self.attempts.expects_more(len(self._entries)):
                    break
                self._wake.wait(left)
            entries, self._entries = self._entries[:BATCH], self._entries[BATCH:]
            self._writing = bool(entries)
            sends, self._sends = self._sends[:BATCH], self._sends[BATCH:]
        return entries, sends

    def _put_back(self, entry: Entry) -> None:
        with self._wake:
            self._entries.append(entry)

    def _take_back(self, entries: Sequence[Entry]) -> None:
        with self._wake:
            self._entries[:0] = [entry for entry in entries if entry not in self._entries]

    def _record(self, entries: Sequence[Entry]) -> None:
        """Commit, whatever it takes; an event whose data the database refuses becomes a failure that says so."""
        for entry in entries:
            if entry.attempt.running:
                entry.event.ran = True  # reported while it ended
        try:
            controls = self._write([e.event for e in entries])
        except DATA_ERRORS as error:
            if len(entries) > 1:
                middle = len(entries) // 2
                self._record(entries[:middle])
                self._record(entries[middle:])
            else:
                self._record_refusal(entries[0], error)
            return
        self._apply(controls)
        self.attempts.acknowledge(entries)
        self._running_rows.learn((e.attempt.actor, e.event.elapsed) for e in entries)

    def _record_refusal(self, entry: Entry, error: BaseException) -> None:
        log.error("item %s/%s can't be recorded as it ended: %s", *entry.attempt.key, error)
        found = describe(error)
        failure = replace(found, message=f"it can't be recorded as it ended: {found.message}", traceback="")
        refused = replace(
            entry.event, state="failed", failure=failure, retry=None, result=None, children=(), crashed=False
        )
        entry.event, entry.dead_letter = refused, True
        try:
            self._apply(self._write([refused]))
        except DATA_ERRORS:
            # Its message stays unacknowledged, so it is not lost: it is delivered again when this worker ends.
            log.critical("item %s/%s can't be recorded at all", *entry.attempt.key, exc_info=True)
            return
        self.attempts.acknowledge([entry])

    def _apply(self, controls: Sequence[JobControl]) -> None:
        self.attempts.apply_controls(controls)
        if any(control.limited for control in controls):
            self.on_room()

    def _write(self, events: Sequence[Event]) -> list[JobControl]:
        """Raises what the data is to blame for. Counters that drifted are no event's fault: they are mended first."""
        try:
            return self._write_with_retry(lambda conn: outcomes.record(conn, events, time.monotonic()))
        except psycopg.errors.CheckViolation as error:
            if not is_counter_drift(error):
                raise
        self._write_with_retry(lambda conn: repair_counters(conn, [event.job for event in events]))
        return self._write_with_retry(lambda conn: outcomes.record(conn, events, time.monotonic()))

    def _write_with_retry(self, write: Callable[[Conn], T]) -> T:
        """Write, and while the database is away go on trying: what waits here is not acknowledged, so nothing is lost.

        An uncertain COMMIT is harmless: the same flush again changes nothing. Raises what the data is to blame for.
        """
        pause = 0.05
        while True:
            try:
                written = self.process.write(write)
                _complain.over()
                _alarm.over()
                return written
            except DATA_ERRORS:
                raise
            except (psycopg.Error, PoolTimeout) as error:
                (_complain if isinstance(error, TRANSIENT) else _alarm)(error)
                time.sleep(pause)
                pause = min(pause * 2, 2.0)

    def _store(self, sends: Sequence[Send]) -> None:
        """Store what plain sends wait for; tried once more when the connection was stale, then they are told.

        Who doesn't wait any more was told that nothing was sent.
        """
        self._store_some([send for send in sends if send.stored.set_running_or_notify_cancel()])

    def _store_some(self, sends: Sequence[Send]) -> None:
        """All of them in one transaction; when the database refuses one's data, the others without it."""
        for again in (True, False):
            try:
                self.process.write(lambda conn: self.store(conn, sends))
            except TRANSIENT as error:
                if again and not isinstance(error, (Uncertain, *DATA_ERRORS)):
                    continue
                self._bisect(sends, error)
            except Exception as error:  # noqa: BLE001 — it is theirs, and they are told
                self._bisect(sends, error)
            return

    def _bisect(self, sends: Sequence[Send], error: Exception) -> None:
        if isinstance(error, DATA_ERRORS) and len(sends) > 1:
            middle = len(sends) // 2
            self._store_some(sends[:middle])
            self._store_some(sends[middle:])
        else:
            self._tell(sends, error)

    @staticmethod
    def _tell(sends: Sequence[Send], error: BaseException) -> None:
        for send in sends:
            if not send.stored.done():
                send.stored.set_exception(error)


def _dedupe(entries: Iterable[Entry], later: Callable[[Entry], None]) -> list[Entry]:
    """At most one event an item, success first; the others wait for the next flush, where the guard judges them."""
    chosen: dict[tuple[int, int], Entry] = {}
    for entry in sorted(entries, key=lambda e: e.event.state != "succeeded"):
        if chosen.setdefault(entry.attempt.key, entry) is not entry:
            later(entry)
    return list(chosen.values())
