"""The journal: commits many events in one transaction, and acknowledges a message only after its outcome is committed.

Worker threads add ended attempts and go on; senders add their items and wait. One thread writes. While the database
does not answer, outcomes gather here; `rabbitmq.prefetch` limits their number.

An item's own statements (`callboard.save`) are committed with its outcome. They may wait for locks of the user's
tables, so a process has a second journal for such items. It delays no other outcome, and locks no job while these
statements run.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import psycopg
from psycopg.errors import LockNotAvailable
from psycopg_pool import PoolTimeout

from callboard.middleware.journal import metrics
from callboard.middleware.journal.counter_repair import repair_counters
from callboard.middleware.journal.hang_detector import HangDetector
from callboard.middleware.journal.running_rows import LOOK_SECONDS, RunningRows
from callboard.middleware.message.attempt import Attempt
from callboard.middleware.message.failure import clean, describe
from callboard.middleware.process.outage import OutageLog, reason
from callboard.middleware.process.process import Process, check_not_ending
from callboard.sql.errors import DATA_ERRORS, TRANSIENT, UserFunctionWaits, is_counter_drift, is_too_large
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import Event, Failure, JobControl, NewItem, Outgoing, Save
from callboard.sql.writes import outcomes, saves

log = logging.getLogger("callboard.journal")

T = TypeVar("T")
_log_outage = OutageLog(
    log,
    "the database can't be written to; trying again, nothing is lost: %s",
    "the database can be written to again, after %.1f s",
)
_log_misconfigured = OutageLog(
    log,
    "the database refuses to record outcomes; trying again, nothing is lost: %s",
    "the database records outcomes again, after %.1f s",
)
_log_busy = OutageLog(
    log,
    "an item can't save yet, which is tried again; other jobs' outcomes are recorded meanwhile: %s",
    "items could save again, after %.1f s",
)
_log_locked = OutageLog(
    log,
    "outcomes wait, those of other jobs are recorded meanwhile: %s",
    "the outcomes that waited for a lock are recorded, after %.1f s",
)

#: Seconds for which events gather, from the end of the first one. A flush starts earlier when no more can come.
FLUSH_SECONDS = 0.020
#: The most events in one transaction, and their most bytes if there are several.
BATCH_EVENTS = 1_000
BATCH_BYTES = 16 * 2**20
#: An outcome of at most so many bytes is never too large: if the database has no room for it, it is tried again.
SMALL_BYTES = 2**20
#: Seconds between two checks whether a job is still locked, and seconds after which its outcomes are tried anyway: a
#: contended row may be locked at each check.
LOCKED_PAUSE_SECONDS, LOCKED_RETRY_SECONDS = 0.25, 5.0
#: Seconds for which a job's items wait after a statement that one of them saves met a lock or took too long. Doubled,
#: up to the second number, each time that none of them could save.
FIRST_BUSY_SECONDS, LAST_BUSY_SECONDS = 0.25, 4.0
#: Characters of a statement that are quoted in the error of its item.
STATEMENT_CHARS = 1_000
#: Consecutive unexpected errors after which the thread ends, and the seconds between two.
MAX_ERRORS = 4
ERROR_PAUSE_SECONDS = 0.25
#: Backoff of a write while the database does not answer: the first number of seconds, doubled up to the second.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.05, 2.0
#: Seconds by which the database's clock, which decides what is due, may be behind the time of a write.
CLOCK_SECONDS = 0.01
#: The longest delay of a retry, in seconds, for which the publisher is woken. It polls as often on its own.
SOON_SECONDS = 0.2
#: The longest wait, in seconds, of the journal's thread in a process that is no worker.
IDLE_SECONDS = 1.0


class UncertainCommit(psycopg.OperationalError):
    """The connection was lost in the COMMIT of plain sends: they may be stored, and a retry would duplicate them."""


class TooLarge(ValueError):
    """The database never has room for a write of this size."""


@dataclass(slots=True, eq=False)
class Entry:
    """An ended attempt, its outcome, and whether its message is to be dead-lettered."""

    attempt: Attempt
    event: Event
    dead_letter: bool

    def fail(self, failure: Failure) -> None:
        """Change the outcome to a final failure, because the real outcome can't be recorded."""
        self.event = replace(
            self.event, state="failed", failure=failure, retry=None, result=None, unkept=None, children=(), saves=None,
            crashed=False, dead=all(delivery.carried for delivery in self.attempt.deliveries),
        )  # fmt: skip
        self.dead_letter = True


@dataclass(slots=True)
class LockedJob:
    """The outcomes of a job that another transaction has locked. They wait at least until `not_before`, and then until
    the job is unlocked, or until `retry_at`. Both times are monotonic.
    """

    retry_at: float
    entries: list[Entry] = field(default_factory=list)
    not_before: float = 0.0


@dataclass(slots=True, eq=False)
class Send:
    """An item of a plain send, which waits until it is stored. `child`: a running item of the same job sends it.
    `redelivered`: its message was redelivered, or was a dead letter.
    """

    item: NewItem
    child: bool = False
    redelivered: bool = False
    stored: Future[Outgoing] = field(default_factory=Future)


class Attempts(Protocol):
    """The methods of `InFlight` that the journal uses."""

    def attempts(self) -> list[Attempt]:
        """The attempts whose outcome is not committed."""

    def expects_more(self, ended: int) -> bool:
        """Return whether the process holds more than `ended` messages."""

    def typical_seconds(self, actor: str) -> float:
        """Return the mean seconds of this actor's attempts; 0 if none has ended."""

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Acknowledge the messages of these attempts, whose outcomes are committed."""

    def apply_controls(self, controls: Sequence[JobControl]) -> None:
        """Apply the control states of the jobs whose outcomes are committed."""


@dataclass(slots=True)
class Journal:
    """See the module. `store` stores plain sends. `on_work` is called with the seconds after which there is more to
    publish; `on_broken` with the permanent error that ends the thread. `reports`: it also writes the rows of `running`;
    one journal of a process does. `commit_seconds`: the duration of the last commit of outcomes, without failed tries.
    """

    process: Process
    attempts: Attempts
    store: Callable[[Conn, Sequence[Send]], None]
    on_work: Callable[[float], None] = lambda _: None
    on_broken: Callable[[BaseException], None] = lambda _: None
    reports: bool = True
    commit_seconds: float = 0.0
    _entries: list[Entry] = field(default_factory=list)
    _sends: list[Send] = field(default_factory=list)
    _locked: dict[int, LockedJob] = field(default_factory=dict)
    _pauses: dict[int, float] = field(default_factory=dict)  # of jobs with busy items, in seconds
    _looked: float = 0.0
    _wake: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None  # None also while it ends: new events start another one
    _closing: bool = False
    _writing: bool = False
    _listeners: list[Callable[[], None]] = field(default_factory=list)
    _running_rows: RunningRows = field(init=False)

    def __post_init__(self) -> None:
        hangs = HangDetector(self.attempts.typical_seconds)
        self._running_rows = RunningRows(self.process, _log_outage, hangs)

    def add(self, entry: Entry) -> None:
        """Take an ended attempt. Does not block, raises nothing."""
        with self._wake:
            self._entries.append(entry)
            if len(self._entries) == 1 or not self.attempts.expects_more(self._pending()):
                self._start()

    def send(self, item: NewItem, *, child: bool = False, redelivered: bool = False) -> Future[Outgoing]:
        """Take an item to be stored; return a future of the stored item. The future raises what `store` raises.

        `child`: a running item of the same job sends it, so the job may be sealed. `redelivered`: see Send.
        """
        send = Send(item, child, redelivered)
        with self._wake:
            self._sends.append(send)
            self._start()
        return send.stored

    def watch(self) -> None:
        """Start the thread, so that running attempts are reported before the first one ends."""
        with self._wake:
            self._start()

    def when_written(self, call: Callable[[], None]) -> None:
        """Call `call` once: when everything added so far is committed and acknowledged, or the thread has ended."""
        with self._wake:
            if self._alive() and (self.pending or self._writing):
                self._listeners.append(call)
            else:
                call()

    def close(self, timeout: float) -> bool:
        """Write all events and end the thread; return False when that takes longer than `timeout` seconds."""
        with self._wake:
            self._closing = True
            self._wake.notify()
            thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return not self._alive()

    @property
    def pending(self) -> int:
        """How many outcomes are not committed."""
        with self._wake:
            return self._pending()

    def _pending(self) -> int:
        waiting = len(self._entries)
        return waiting + sum(len(job.entries) for job in self._locked.values()) if self._locked else waiting

    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _start(self) -> None:
        if not self._alive():
            check_not_ending()
            self._thread = threading.Thread(target=self._run, name="callboard-journal", daemon=True)
            self._thread.start()
        self._wake.notify()

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Write until the journal is closed. After an unexpected error the same events are written again, which is
        idempotent; `MAX_ERRORS` consecutive errors end the thread.
        """
        errors = 0
        while True:
            try:
                if not self._write_gathered():
                    return
                errors = 0
            except BaseException as error:  # any error: without this thread no message is acknowledged
                errors += 1
                if errors == MAX_ERRORS:
                    self._give_up(error)
                    return
                log.warning("unexpected error in the journal; trying again", exc_info=True)
                time.sleep(ERROR_PAUSE_SECONDS)

    def _write_gathered(self) -> bool:
        """Write the gathered events; return whether more may come."""
        entries, sends = self._gather()
        try:
            if sends:
                # A sender that timed out has cancelled its future, so its item must not be stored.
                self._store([send for send in sends if send.stored.set_running_or_notify_cancel()])
            if entries:
                now, later = _dedupe(entries)
                with self._wake:
                    self._entries += later
                self._record(now)
            if self._locked:
                self._look_at_locked()
        except BaseException as error:
            with self._wake:
                waiting = [entry for job in self._locked.values() for entry in job.entries]
                self._entries[:0] = [e for e in entries if e not in self._entries and e not in waiting]
            _fail(sends, error)
            raise
        if self.reports:
            self._running_rows.report(self.attempts.attempts)
        with self._wake:
            self._writing = False
            while self._listeners and not self.pending:
                self._listeners.pop()()
            if self._closing and not self.pending and not self._sends:
                self._thread = None
                return False
            return True

    def _gather(self) -> tuple[list[Entry], list[Send]]:
        with self._wake:
            if not self._entries and not self._sends and not self._closing:
                self._wake.wait(LOOK_SECONDS if self.process.worker else IDLE_SECONDS)
            elif self._closing and self._locked and not self._entries:
                self._wake.wait(LOCKED_PAUSE_SECONDS)
            # Counted from the end of the first attempt: outcomes that came during the last write must not wait again,
            # because all threads may wait for them.
            deadline = (self._entries[0].event.ended if self._entries else 0.0) + FLUSH_SECONDS
            while self._entries and not self._sends and not self._closing:
                left = deadline - time.monotonic()
                if left <= 0 or not self.attempts.expects_more(self.pending):
                    break
                self._wake.wait(left)
            first = _batch(entry.event.size for entry in self._entries)
            entries, self._entries = self._entries[:first], self._entries[first:]
            first = _batch(send.item.size for send in self._sends)
            sends, self._sends = self._sends[:first], self._sends[first:]
            self._writing = bool(entries)
        return entries, sends

    def _give_up(self, error: BaseException) -> None:
        """Fail all sends, call all listeners. Outcomes stay unacknowledged, so their messages are redelivered."""
        log.critical(
            "the journal can't go on; the messages of %d outcomes are delivered again", self.pending, exc_info=error
        )
        with self._wake:
            sends, self._sends = self._sends, []
            listeners, self._listeners = self._listeners, []
            self._thread = None
        _fail(sends, error)
        for call in listeners:
            call()
        self.on_broken(error)

    # Outcomes --------------------------------------------------------------------------------------------------------

    def _record(self, entries: Sequence[Entry]) -> None:
        """Commit outcomes, retrying for as long as it takes, then acknowledge. If the database refuses an outcome's
        data, the item fails with that error.
        """
        for entry in entries:
            if entry.attempt.running:
                entry.event.ran = True  # its row in `running` may have been written while it ended
        entries = [entry for entry in entries if not self._joins_locked(entry)]
        if not entries:
            return
        try:
            controls, busy = self._commit(entries)
        except LockNotAvailable as error:
            self._set_aside(entries, error)
        except DATA_ERRORS as error:
            if len(entries) > 1:
                middle = len(entries) // 2
                self._record(entries[:middle])
                self._record(entries[middle:])
            else:
                self._record_refused(entries[0], error)
        else:
            self._acknowledge([entry for entry in entries if entry not in busy], controls)
            self._put_off(busy)

    def _joins_locked(self, entry: Entry) -> bool:
        """If its job is locked, keep an outcome with the others of that job. Return whether the job is locked."""
        locked = self._locked.get(entry.attempt.job)
        if locked is not None:
            entry.attempt.put_off = True
            locked.entries.append(entry)
        return locked is not None

    def _set_aside(self, entries: Sequence[Entry], error: LockNotAvailable) -> None:
        """Keep the outcomes of jobs that another transaction has locked, and record the others. If no job is locked any
        more, a user's trigger may have waited for a lock or for something else. Then the outcomes are recorded job by
        job to find its job. That job waits as a whole, because a search for the item would wait once for each half.
        """
        locked, pause, why = set[int](), 0.0, f": {error}"
        if not isinstance(error, UserFunctionWaits):
            why = f" is locked, perhaps by {self._write_until_done(outcomes.longest_lock)}"
            locked = self._locked_jobs(entries)
        jobs = {entry.attempt.job for entry in entries}
        if not locked and len(jobs) > 1:
            for job in sorted(jobs):
                self._record([entry for entry in entries if entry.attempt.job == job])
            return
        if not locked:
            locked, pause = jobs, LAST_BUSY_SECONDS
        self._looked = time.monotonic()
        with self._wake:
            again = self._looked + LOCKED_RETRY_SECONDS
            self._locked.update((job, LockedJob(again, not_before=self._looked + pause)) for job in locked)
        _log_locked(TimeoutError(f"{_jobs(locked)}{why}"))
        self._record(entries)

    def _look_at_locked(self) -> None:
        """Retry the outcomes of jobs that are no longer locked, or whose `retry_at` has passed."""
        now = time.monotonic()
        if now - self._looked < LOCKED_PAUSE_SECONDS:
            return
        self._looked = now
        due = {job: one for job, one in self._locked.items() if now >= one.not_before}
        locked = self._locked_jobs([entry for one in due.values() for entry in one.entries])
        free = {job for job, one in due.items() if job not in locked or now >= one.retry_at}
        with self._wake:
            for job in free:
                self._entries[:0] = self._locked.pop(job).entries
        if not self._locked:
            _log_locked.over()

    def _locked_jobs(self, entries: Sequence[Entry]) -> set[int]:
        return self._write_until_done(lambda conn: outcomes.locked_jobs(conn, (entry.attempt.key for entry in entries)))

    def _record_refused(self, entry: Entry, error: BaseException) -> None:
        log.error("item %s/%s can't be recorded as it ended: %s", *entry.attempt.key, error)
        found = describe(error)
        if entry.event.result is not None:
            entry.event = replace(entry.event, result=None, unkept=found.message)
            self._record([entry])
            return
        entry.fail(replace(found, message=f"it can't be recorded as it ended: {found.message}", traceback=""))
        try:
            controls, _ = self._commit([entry])
        except LockNotAvailable as locked:
            self._set_aside([entry], locked)
        except DATA_ERRORS:
            # Its message stays unacknowledged, so it is delivered again when this worker ends.
            log.critical("item %s/%s can't be recorded at all", *entry.attempt.key, exc_info=True)
        else:
            self._acknowledge([entry], controls)

    def _commit(self, entries: Sequence[Entry]) -> tuple[list[JobControl], set[Entry]]:
        """Commit outcomes, with the statements that the items save. Returns the control states of their jobs, and the
        outcomes that are put off because a saved statement waits. If counters have drifted, they are repaired and the
        write repeated.

        Raises DATA_ERRORS and LockNotAvailable.
        """
        size = sum(entry.event.size for entry in entries)
        began = tried = time.monotonic()

        def write(conn: Conn) -> tuple[list[JobControl], set[Entry]]:
            nonlocal tried
            tried = time.monotonic()
            return _write(entries, conn)

        try:
            written = self._write_until_done(write, size)
        except psycopg.errors.CheckViolation as error:
            if not is_counter_drift(error):
                raise
        else:
            now = time.monotonic()
            self.commit_seconds = now - tried
            metrics.count(lambda m: m.count_flush(len(entries), now - began, self.pending))
            return written
        jobs = {entry.attempt.job for entry in entries}
        self._write_until_done(lambda conn: repair_counters(conn, jobs))
        metrics.count(lambda m: m.count_repairs(len(jobs)))
        return self._write_until_done(write)

    def _put_off(self, entries: Collection[Entry]) -> None:
        """Retry outcomes that could not be saved yet: at once, or after a pause if their job has a busy item."""
        now = time.monotonic()
        waiting: dict[int, LockedJob] = {}
        for job in {e.event.job for e in entries if e.event.saves and e.event.saves.busy_since}:
            pause = self._pauses.get(job, FIRST_BUSY_SECONDS)
            self._pauses[job] = min(2 * pause, LAST_BUSY_SECONDS)
            waiting[job] = LockedJob(now + pause, not_before=now + pause)
        with self._wake:
            self._locked.update(waiting)
            self._entries[:0] = [entry for entry in entries if not self._joins_locked(entry)]

    def _acknowledge(self, entries: Sequence[Entry], controls: Sequence[JobControl]) -> None:
        self.attempts.apply_controls(controls)
        due = _due_seconds([entry.event for entry in entries], limited=any(c.limited for c in controls))
        if due is not None:
            self.on_work(due)
        self.attempts.acknowledge(entries)
        metrics.count(lambda m: m.count_ended((entry.attempt, entry.event) for entry in entries))
        for entry in entries:
            if self._pauses.pop(entry.attempt.job, None) and not self._pauses:
                _log_busy.over()

    def _write_until_done(self, statement: Callable[[Conn], T], size: int = 0) -> T:
        """Write until it is committed, even while the process stops, with a backoff of 0.05 s that doubles up to 2 s.
        `statement` must be idempotent, because a lost COMMIT is repeated.

        Raises DATA_ERRORS and LockNotAvailable, and TooLarge if the database has no room for a write of `size` bytes.
        """
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                written = self.process.write(statement)
            except (*DATA_ERRORS, LockNotAvailable):
                raise
            except (psycopg.Error, PoolTimeout, MemoryError) as error:
                if size > SMALL_BYTES and is_too_large(error):
                    raise TooLarge(f"{size:,} bytes are too much for the database: {reason(error)}") from error
                (_log_outage if isinstance(error, TRANSIENT) else _log_misconfigured)(error)
                time.sleep(pause)
                pause = min(pause * 2, LAST_RETRY_SECONDS)
            else:
                _log_outage.over()
                _log_misconfigured.over()
                return written

    # Plain sends -----------------------------------------------------------------------------------------------------

    def _store(self, sends: Sequence[Send]) -> None:
        """Store plain sends in one transaction; retry once after a lost connection. If the database refuses one send,
        store the others. Resolves the future of each send.
        """
        for last in (False, True):
            try:
                self.process.write(lambda conn: self.store(conn, sends))
            except Exception as error:  # noqa: BLE001 — the futures get it
                refused = isinstance(error, (*DATA_ERRORS, UserFunctionWaits)) or is_too_large(error)
                final = refused or isinstance(error, (UncertainCommit, PoolTimeout))  # the senders waited for the pool
                if not last and isinstance(error, TRANSIENT) and not final:
                    continue
                if refused and len(sends) > 1:
                    middle = len(sends) // 2
                    self._store(sends[:middle])
                    self._store(sends[middle:])
                else:
                    _fail(sends, error)
            return


def _write(entries: Sequence[Entry], conn: Conn) -> tuple[list[JobControl], set[Entry]]:
    """Record outcomes and run the statements that the items save, in one transaction; see `Journal._commit`. An item
    fails if one of its statements is refused.
    """
    saving = {entry.attempt.key: entry for entry in entries if entry.event.saves}
    if not saving:
        return outcomes.record(conn, [entry.event for entry in entries], time.monotonic()), set()
    with transaction(conn):
        found = saves.lock_succeeding(conn, [entry.event for entry in entries])
        unsaved = saves.run(conn, [saving[key].event for key in found if key in saving])
        for key, (save, error) in unsaved.refused.items():
            saving[key].fail(_failure(save, error))
        events = [entry.event for entry in entries if entry.attempt.key not in unsaved.later]
        controls = outcomes.record(conn, events, time.monotonic()) if events else []
    if unsaved.busy:
        _log_busy(next(iter(unsaved.busy.values())))
    return controls, {saving[key] for key in unsaved.later}


def _failure(save: Save, error: Exception) -> Failure:
    """Return the failure of an item whose saved statement was refused."""
    found = describe(error)
    text = clean(" ".join(save.text.split()), STATEMENT_CHARS)
    return replace(found, message=f"{found.message}; it saves: {text}", place=save.place, traceback="")


def _due_seconds(events: Sequence[Event], *, limited: bool) -> float | None:
    """Return after how many seconds the recorded outcomes make a message due: a retry, a child, or the next item of a
    limited job. None: not before the publisher's own poll.
    """
    now = time.monotonic()
    due = [max(0.0, e.retry.delay - (now - e.ended)) for e in events if e.retry and e.retry.delay < SOON_SECONDS]
    if limited or 0.0 in due or any(e.children for e in events):
        return 0.0
    return min(due) + CLOCK_SECONDS if due else None


def _dedupe(entries: Iterable[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Choose one event for each item, a success if there is one. The others wait for the next flush, where the guard of
    the statement drops those that are stale.
    """
    chosen: dict[tuple[int, int], Entry] = {}
    later = [
        entry
        for entry in sorted(entries, key=lambda e: e.event.state != "succeeded")
        if chosen.setdefault(entry.attempt.key, entry) is not entry
    ]
    return list(chosen.values()), later


def _batch(sizes: Iterable[int]) -> int:
    """Return how many of the first events go into one transaction, by their bytes; at least one."""
    total = 0
    for count, size in enumerate(sizes):
        total += size
        if count == BATCH_EVENTS or (count and total > BATCH_BYTES):
            return count
    return BATCH_EVENTS


def _jobs(numbers: Collection[int]) -> str:
    """Return the first of some jobs, and how many others there are."""
    more = f" (and {len(numbers) - 1} others)" if len(numbers) > 1 else ""
    return f"job {min(numbers)}{more}"


def _fail(sends: Sequence[Send], error: BaseException) -> None:
    for send in sends:
        if not send.stored.done():
            send.stored.set_exception(error)
