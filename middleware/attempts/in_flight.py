"""What a process has in hand: attempts from their message's arrival to the commit of their outcome."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dramatiq.broker import MessageProxy

from callboard.middleware.attempts.claim import Failed, claim
from callboard.middleware.attempts.isolation import Isolation
from callboard.middleware.attempts.outcome import Outcome
from callboard.middleware.attempts.parking import Parking
from callboard.middleware.journal.journal import Entry, Journal
from callboard.middleware.message import stamp
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.process.process import RETRY_SECONDS, Process, Stopping
from callboard.middleware.submission.enqueue import new_item
from callboard.sql import timings
from callboard.sql.errors import DATA_ERRORS
from callboard.sql.rows import Claim, Event, JobControl, NewItem, Outgoing
from callboard.sql.writes import claims

log = logging.getLogger("callboard.tracking")


class InFlight:
    """The attempts of this process, by item; to be given its `journal` before the first ends.

    `defers`: the consumer acknowledges after the commit by itself, so that no worker thread needs to wait for it.
    `open_deliveries` counts the messages that the process was given and that are not acknowledged, `prefetched` names
    their items.
    """

    journal: Journal

    def __init__(
        self,
        process: Process,
        *,
        defers: bool,
        open_deliveries: Callable[[], int] = lambda: 0,
        prefetched: Callable[[], list[tuple[int, int]]] = list,
    ) -> None:
        self._process = process
        self._parking = Parking(process, defers=defers)
        self._defers = defers
        self._open_deliveries = open_deliveries
        self._prefetched = prefetched
        self._lock = threading.RLock()
        self._turns = Isolation(process)
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._claiming: dict[tuple[int, int, int], Attempt] = {}  # by job, item and attempt
        self._controls: dict[int, JobControl] = {}

    def admit(self, message: MessageProxy) -> Attempt | None:
        """The attempt that a delivered message carries; None when it must not run."""
        if getattr(message, "stale", False):
            return None  # its connection is gone: RabbitMQ delivers it again
        try:
            return self._admit(message)
        except Stopping:
            message.deferred = True  # type: ignore[attr-defined]
        except Failed:
            # Its worker died before it could reject it. A copy of it, never delivered before, simply goes.
            message.failed = getattr(message, "redelivered", False)
        except DATA_ERRORS as error:
            log.error("a message can't be recorded, so it goes to the dead letters: %s", error)  # noqa: TRY400
            message.fail()
        except Exception:
            # Raised on, Dramatiq would log it and run the actor, of which nothing would be on record.
            log.exception("a message can't be begun; it comes again when this worker has ended")
            message.deferred = True  # type: ignore[attr-defined]
        return None

    def _admit(self, message: MessageProxy) -> Attempt | None:
        mark = stamp.read(message.options)
        suspect = getattr(message, "redelivered", False)
        if mark is None:
            mark, known = self._adopt(message)
            suspect = suspect or known
        attempt = Attempt(mark.job, mark.item, mark.attempt, [message], self._controls)
        twin = self._attempts.get(attempt.key)
        if (twin is not None and self._join(twin, attempt)) or self._held_back(mark, attempt):
            return None
        if suspect or mark.suspect or twin is not None or self._outdated(mark):
            return attempt if self._may_run(mark, attempt) else None
        self._turns.enter(attempt, lead=current_attempt.get())
        runs = False
        try:
            runs = not self._gone(attempt) and not self._held_back(mark, attempt)  # it may have waited
            if runs:
                self._begin(attempt)
        finally:
            if not runs:
                self._turns.leave(attempt)
        return attempt if runs else None

    def _held_back(self, mark: Stamp, attempt: Attempt) -> bool:
        """Whether its job was stopped, so that its message goes, or paused, so that it is kept for later."""
        told = self._told(mark)
        if told is not None and not told.over:
            self._keep(attempt)
        return told is not None

    def _told(self, mark: Stamp) -> JobControl | None:
        """What keeps it from running: its job is paused, or over. A message newer than what was heard of its job was
        sent because the job goes on.
        """
        control = self._controls.get(mark.job)
        if control is None or control.epoch < mark.epoch:
            return None
        return control if control.over or control.state == "paused" else None

    def _keep(self, attempt: Attempt) -> None:
        for message in attempt.deliveries:
            message.deferred = self._defers
        self._parking.park(attempt)

    def _begin(self, attempt: Attempt) -> None:
        attempt.started = time.monotonic()  # it may have waited
        self._attempts[attempt.key] = attempt

    def _join(self, twin: Attempt, copy: Attempt) -> bool:
        """A copy of what is in hand is settled with it; False when that is another attempt, or no longer in hand."""
        with self._lock:
            if twin.number != copy.number or self._attempts.get(twin.key) is not twin:
                return False
            self._share(twin, copy)
            return True

    def _share(self, twin: Attempt, copy: Attempt) -> None:
        twin.deliveries += copy.deliveries
        for message in copy.deliveries:
            message.deferred = self._defers

    def _outdated(self, mark: Stamp) -> bool:
        control = self._controls.get(mark.job)
        return control is not None and control.epoch > mark.epoch

    def _may_run(self, mark: Stamp, attempt: Attempt) -> bool:
        """A copy that comes while the item is asked for is settled with it: the connection of the first may be gone by
        now, and then the copy is its message. The next attempt's message is none: a worker that died before it
        acknowledged leaves both in the queue, and dropped beside the outdated one it would be lost.
        """
        claiming = (*attempt.key, attempt.number)
        with self._lock:
            twin = self._attempts.get(attempt.key)
            if twin is None or twin.number != attempt.number:
                twin = self._claiming.setdefault(claiming, attempt)
            if twin is not attempt:
                self._share(twin, attempt)
                return False
        runs, told = False, None
        try:
            claimed = self._claimed(mark, attempt)
            told = self._told(mark) if claimed else None
            if told is not None:
                self._give_back(mark)
            elif claimed:
                attempt.running = attempt.reported = True  # a claim is a row in `running`
                self._begin(attempt)
                runs = True
        finally:
            self._answered(attempt)
            if not runs:
                self._turns.leave(attempt)
                if told is None or told.over:
                    self._drop(attempt.deliveries[1:])
        if told is not None and not told.over:
            self._keep(attempt)
        return runs

    def _claimed(self, mark: Stamp, attempt: Attempt) -> Claim | None:
        """An item waits for its turn without a claim: with one it would be in hand, and charged with a crash itself."""
        self._turns.enter(attempt, lead=current_attempt.get())
        claimed = None if self._gone(attempt) else self._claim(mark)
        if claimed is not None and claimed.crashes >= timings.MAX_CRASHES - 1:
            self._give_back(mark)
            self._turns.enter(attempt, alone=True)
            claimed = None if self._gone(attempt) else self._claim(mark)
        return claimed

    def _gone(self, attempt: Attempt) -> bool:
        """Whether every connection that brought it is gone meanwhile: RabbitMQ delivers it again, and that copy asks
        for itself.
        """
        with self._lock:
            gone = all(getattr(message, "stale", False) for message in attempt.deliveries)
            if gone:
                self._answered(attempt)
            return gone

    def _adopt(self, message: MessageProxy) -> tuple[Stamp, bool]:
        """Record a message that has no stamp; return its stamp, and whether it was on record before. Raises Stopping
        while the process stops: then its message comes again.
        """
        item = new_item(message, job=0, key=f"message:{message.message_id}", published=True)
        out = self._process.retry(lambda: self._stored(item))
        return Stamp(out.job, out.item, 1), out.suspect

    def _stored(self, item: NewItem) -> Outgoing:
        waiting = self.journal.send(item)
        while True:
            try:
                return waiting.result(RETRY_SECONDS)
            except TimeoutError:
                if self._process.stopping:
                    waiting.cancel()
                    raise Stopping from None

    def _claim(self, mark: Stamp) -> Claim | None:
        return self._process.retry_write(lambda conn: claim(conn, mark, self._process.worker))

    def _give_back(self, mark: Stamp) -> None:
        worker = self._process.worker
        self._process.retry_write(lambda conn: claims.give_back(conn, mark.job, mark.item, worker))

    def _answered(self, attempt: Attempt) -> None:
        """From here on no copy joins what is asked for."""
        with self._lock:
            claiming = (*attempt.key, attempt.number)
            if self._claiming.get(claiming) is attempt:
                del self._claiming[claiming]

    def _drop(self, copies: Sequence[Any]) -> None:
        """Copies of what must not run go with it; but what a process that stops leaves behind comes again."""
        if self._defers and not self._process.stopping:
            for message in copies:
                message.acks.release([message.tag], [])

    def finish(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Hand an attempt that ended to the journal; returns whether its message is to be dead-lettered."""
        attempt.ended = True
        ended = time.monotonic()
        attempt.result = None
        children = attempt.hooked
        if outcome.state in ("succeeded", "skipped"):
            children = attempt.sent + attempt.hooked
        elif attempt.returned:  # its result can't be kept, but the hooks took it for a success
            children = ()
        event = Event(
            attempt.job, attempt.item, attempt.number, outcome.state, ended - attempt.started, ended,
            self._process.worker,
            outcome.failure, outcome.retry, outcome.result, children,
            ran=attempt.running,
            dead=outcome.state == "failed" and all(_carried(m) for m in attempt.deliveries),
        )  # fmt: skip
        entry = Entry(attempt, event, outcome.state == "failed")
        if self._defers:
            for message in attempt.deliveries:
                message.deferred = True
            self.journal.add(entry)
        else:
            entry.recorded = threading.Event()
            self.journal.add(entry)
            while not entry.recorded.wait(RETRY_SECONDS):
                if self._process.stopping and not self._process.time_left():
                    attempt.abandoned = True
                    break
        return entry.dead_letter

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """These are committed: now, and only now, their messages may be acknowledged."""
        trackers: dict[Any, tuple[list[Any], list[Any]]] = {}
        with self._lock:
            for entry in entries:
                attempt = entry.attempt
                if self._attempts.get(attempt.key) is attempt:
                    del self._attempts[attempt.key]
                self._turns.leave(
                    attempt
                )  # not as it ends: until it is on record a death would be charged to it
                if self._defers:
                    for message in attempt.deliveries:
                        rejected = entry.dead_letter and not _carried(message)
                        trackers.setdefault(message.acks, ([], []))[rejected].append(message.tag)
        for tracker, (acks, nacks) in trackers.items():
            tracker.release(acks, nacks)
        for entry in entries:
            if entry.recorded is not None:
                entry.recorded.set()

    def attempts(self) -> list[Attempt]:
        """The attempts whose outcome is not committed."""
        return list(self._attempts.values())

    def held(self) -> list[tuple[int, int]]:
        """(job, item) of what the process has in flight or prefetched, each once."""
        return list({*self._attempts, *self._prefetched()})

    def expects_more(self, ended: int) -> bool:
        """Whether the process holds more messages than the `ended` ones, so that a flush is worth waiting for."""
        return len(self._attempts) > ended or self._open_deliveries() > ended

    def apply_controls(self, controls: Iterable[JobControl]) -> None:
        """Take what jobs say; from the next message on it holds. What was said before may arrive after it. Most jobs
        say nothing in all their life, and there are many in that of a worker.
        """
        for control in controls:
            known = self._controls.get(control.job)
            if not control.plain and (known is None or known.epoch <= control.epoch):
                self._controls[control.job] = control


def _carried(message: Any) -> bool:
    """Whether its delivery carries others, so that it is acknowledged in any case."""
    return getattr(message, "carried", False)
