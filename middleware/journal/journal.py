"""The journal: many events become one transaction, and no message is acknowledged before its outcome is committed.

Worker threads hand over what ended and go on; senders hand over what they send and wait. One thread writes.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.journal.counter_repair import repair_counters
from callboard.middleware.journal.hang_detector import HangDetector
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.failure import describe
from callboard.middleware.process.outage import OutageLog
from callboard.sql.errors import DATA_ERRORS, TRANSIENT, drifted
from callboard.sql.pool import Conn, Pool
from callboard.sql.rows import Event, JobControl, NewItem, Outgoing, Running
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
_blind = OutageLog(log, "what hangs can't be looked at: %s")

#: Seconds for which events gather; a flush does not wait them out when nothing more can come.
WINDOW = 0.020
#: Events in one transaction.
BATCH = 1_000
#: Seconds after which an item in hand gets a row in `running`.
SLOW = 0.25
#: Seconds between two looks at what is in hand.
LOOK = 0.10
#: Jobs that are known to have started here.
SEEN = 10_000
#: Tries in a row that may end with an error nobody thought of, and the seconds between two.
TRIES = 4
REST = 0.25


class Uncertain(psycopg.OperationalError):
    """The connection broke in the COMMIT of what plain sends wait for; written again it might be there twice."""


@dataclass(slots=True, eq=False)
class Entry:
    """An attempt that ended, how, and whether somebody waits for it to be on record."""

    attempt: Attempt
    event: Event
    dead_letter: bool
    recorded: threading.Event | None = None


@dataclass(slots=True, eq=False)
class Send:
    """An item that a plain send waits to have stored."""

    item: NewItem
    stored: Future[Outgoing] = field(default_factory=Future)


@dataclass(slots=True)
class Journal:
    """See the module. `more_may_come` tells whether the process holds more messages than so many; `in_hand` gives the
    attempts that are not on record; `settled` is called after each commit, `controlled` with what jobs said; `broken`
    when the thread ends by an error that does not pass.
    """

    pool: Pool
    worker: Callable[[], int]
    more_may_come: Callable[[int], bool]
    in_hand: Callable[[], Sequence[Attempt]]
    settled: Callable[[Sequence[Entry]], None]
    controlled: Callable[[Iterable[JobControl]], None]
    store: Callable[[Conn, Sequence[Send]], None]
    broken: Callable[[BaseException], None] = lambda _: None
    _entries: list[Entry] = field(default_factory=list)
    _sends: list[Send] = field(default_factory=list)
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None
    _closing: bool = False
    _writing: bool = False
    _listeners: list[Callable[[], None]] = field(default_factory=list)
    _looked: float = 0.0
    _jobs_seen: set[int] = field(default_factory=set)
    _hangs: HangDetector = field(default_factory=HangDetector)

    def add(self, entry: Entry) -> None:
        """Take an attempt that ended. Never blocks, never raises."""
        with self._wake:
            self._entries.append(entry)
            waiting = len(self._entries)
            if waiting == 1 or not self.more_may_come(waiting):
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
        self._look()
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
        self.broken(error)

    def _gather(self) -> tuple[list[Entry], list[Send]]:
        with self._wake:
            if not self._entries and not self._sends and not self._closing:
                self._wake.wait(LOOK if self.worker() else 1.0)
            deadline = time.monotonic() + WINDOW
            while self._entries and not self._sends and not self._closing:
                left = deadline - time.monotonic()
                if left <= 0 or not self.more_may_come(len(self._entries)):
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
        self.controlled(controls)
        self.settled(entries)
        self._learn(entries)

    def _record_refusal(self, entry: Entry, error: BaseException) -> None:
        log.error("item %s/%s can't be recorded as it ended: %s", *entry.attempt.key, error)
        found = describe(error)
        failure = replace(found, message=f"it can't be recorded as it ended: {found.message}", traceback="")
        refused = replace(
            entry.event, state="failed", failure=failure, retry=None, result=None, children=(), crashed=False
        )
        entry.event, entry.dead_letter = refused, True
        try:
            self.controlled(self._write([refused]))
        except DATA_ERRORS:
            # Its message stays unacknowledged, so it is not lost: it is delivered again when this worker ends.
            log.critical("item %s/%s can't be recorded at all", *entry.attempt.key, exc_info=True)
            if entry.recorded is not None:
                entry.recorded.set()  # a broker that isn't ours knows no third way: it goes to the dead letters
            return
        self.settled([entry])

    def _write(self, events: Sequence[Event]) -> list[JobControl]:
        """Raises what the data is to blame for. Counters that drifted are no event's fault: they are mended first."""
        try:
            return self._write_with_retry(lambda conn: outcomes.record(conn, events, time.monotonic()))
        except psycopg.errors.CheckViolation as error:
            if not drifted(error):
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
                with self.pool.connection() as conn:
                    written = write(conn)
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
                with self.pool.connection() as conn:
                    self.store(conn, sends)
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

    def _look(self) -> None:
        """Give slow items their row in `running`, move steps and progress, and note the jobs that started here."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        attempts = [a for a in self.in_hand() if not a.ended]
        slow = [a for a in attempts if (now - a.started > SLOW and not a.reported) or a.says_more]
        jobs = {a.job: None for a in attempts if a.job not in self._jobs_seen} | {
            a.job: a.step for a in slow if a.step != a.step_reported
        }
        if slow or jobs:
            self._report(slow, jobs, now)
        self._sample(attempts, now)

    def _learn(self, entries: Sequence[Entry]) -> None:
        try:
            self._hangs.learn((e.attempt.actor, e.event.elapsed) for e in entries)
        except Exception as error:  # noqa: BLE001 — what is only looked at must not keep anything from being written
            _blind(error)

    def _sample(self, attempts: Sequence[Attempt], now: float) -> None:
        try:
            if stacks := self._hangs.look(attempts, now):
                with self.pool.connection() as conn:
                    outcomes.report_stacks(conn, self.worker(), stacks)
        except Exception as error:  # noqa: BLE001 — likewise
            _blind(error)

    def _report(self, slow: Sequence[Attempt], jobs: dict[int, str | None], now: float) -> None:
        running = [Running(*a.key, a.number, now - a.started, a.step, a.progress) for a in slow]
        for attempt in slow:
            attempt.running = True  # before the row is there: its end must delete it
        try:
            with self.pool.connection() as conn:
                if running:
                    outcomes.report_running(conn, self.worker(), running)
                if jobs:
                    outcomes.touch_jobs(conn, jobs)
        except (psycopg.Error, PoolTimeout) as error:
            _complain(error)
            return
        _complain.over()
        if len(self._jobs_seen) + len(jobs) > SEEN:
            self._jobs_seen.clear()  # those still at work are noted once more, which changes nothing
        self._jobs_seen.update(jobs)
        for attempt, told in zip(slow, running, strict=True):
            attempt.reported, attempt.step_reported = True, told.step
            attempt.progress_reported = told.progress


def _dedupe(entries: Iterable[Entry], later: Callable[[Entry], None]) -> list[Entry]:
    """At most one event an item, success first; the others wait for the next flush, where the guard judges them."""
    chosen: dict[tuple[int, int], Entry] = {}
    for entry in sorted(entries, key=lambda e: e.event.state != "succeeded"):
        if chosen.setdefault(entry.attempt.key, entry) is not entry:
            later(entry)
    return list(chosen.values())
