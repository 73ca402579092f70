"""The attempts of this process, from the arrival of their messages to the commit of their outcomes."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache

from dramatiq.broker import MessageProxy
from psycopg.errors import LockNotAvailable

from callboard.middleware.attempts.claim import AlreadyFailed, ItemLocked, MovedBack, claim, postpone
from callboard.middleware.attempts.durations import Durations
from callboard.middleware.attempts.isolation import Isolation
from callboard.middleware.attempts.outcome import Outcome
from callboard.middleware.attempts.parking import LOCKED_PAUSE_SECONDS, Parking, retry_moved_back
from callboard.middleware.journal.journal import Entry, Journal
from callboard.middleware.journal.rescue import rescue_of_host
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.consumers import Consumers
from callboard.middleware.message.delivery import Acks, Delivery, release
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.process.process import RETRY_SECONDS, Process, Stopping
from callboard.middleware.process.side_thread import SideThread
from callboard.middleware.publish.lanes import lane_of_call, lanes_of_call
from callboard.middleware.submission.enqueue import foreign_item
from callboard.sql.errors import DATA_ERRORS
from callboard.sql.pool import Conn
from callboard.sql.rows import Claim, Event, JobControl, JobFacts, NewItem, Outgoing
from callboard.sql.writes import claims, jobs, lanes

log = logging.getLogger("callboard.tracking")

#: The most jobs whose tenant, key and metadata are cached; they are read once per job, when an actor asks for them.
CACHED_JOBS = 1_000


class InFlight:
    """The attempts in flight, by item. Set both journals before the first attempt ends; `saving` is the journal of
    items that save statements. `kept` is called after messages were parked, to be published again. `wake` is called
    when a message arrives in an idle process: it reads the control states of jobs.
    """

    journal: Journal
    saving: Journal

    def __init__(
        self, process: Process, consumers: Consumers, kept: Callable[[], None], wake: Callable[[], None]
    ) -> None:
        self._process = process
        self._consumers = consumers
        self._parking = Parking(process, claims.park, kept)
        self._moved_back = Parking(process, retry_moved_back, kept)
        self._lock = threading.RLock()
        self._wake = wake
        self._isolation = Isolation(process)
        self._read_facts = lru_cache(CACHED_JOBS)(self._job_facts)
        self._holds = SideThread("holds")
        self._attempts: dict[tuple[int, int], Attempt] = {}
        self._durations = Durations()
        self._claiming: dict[tuple[int, int, int], Attempt] = {}  # by job, item and attempt
        self._controls: dict[int, JobControl] = {}
        self._held_back: dict[int, tuple[JobControl, float]] = {}  # with the monotonic time of arrival
        self.admitted = 0  # messages that threads began to admit; approximate
        self._admitting: dict[int, Delivery] = {}  # by thread

    # A message arrives -----------------------------------------------------------------------------------------------

    def admit(self, message: MessageProxy) -> Attempt | None:
        """Begin the attempt that a message carries and return it; None when it must not run.

        Waits for the database, and for items that run alone. Raises nothing. The caller acknowledges a message that
        must not run, unless this made its delivery `deferred`; it rejects the message if this made it fail.
        """
        delivery: Delivery = message.delivery
        self.admitted += 1  # before `idle` is read: see Heartbeat._note_idle
        if self._process.idle:
            self._wake()
        if delivery.stale or not delivery.begin():
            return None
        self._admitting[threading.get_ident()] = delivery
        try:
            return self._admit(message, delivery)
        except Stopping:
            delivery.deferred = True  # never acknowledged, it is delivered again
        except AlreadyFailed:
            # The worker died before it rejected the message. A duplicate that was never delivered before is
            # acknowledged.
            message.failed = delivery.came_before
        except DATA_ERRORS as error:
            log.error("a message can't be recorded, so it goes to the dead letters: %s", error)  # noqa: TRY400
            message.fail()
        except BaseException:
            # Dramatiq would log the error and run the actor untracked, or the error would end the thread.
            log.exception("a message can't begin; it is delivered again when this worker has ended")
            delivery.deferred = True
        finally:
            self._admitting.pop(threading.get_ident(), None)
        return None

    def _admit(self, message: MessageProxy, delivery: Delivery) -> Attempt | None:
        stamp, suspect = delivery.stamp, delivery.came_before
        if stamp is None:
            stamp, known = self._adopt(message, redelivered=suspect)
            suspect = suspect or known
        attempt = self._attempt_of(message, stamp)
        other = self._attempts.get(attempt.key)
        if other is not None and self._join(other, attempt):
            return None
        if not delivery.was_dead and self._is_blocked(attempt):
            return None  # a dead letter that was moved back skips this check
        suspect = suspect or stamp.suspect or other is not None or self._outdated(attempt)
        if suspect and self._joins_claim(attempt):
            return None
        try:
            return attempt if self._begin(attempt, suspect=suspect) else None
        except MovedBack:
            self._park(attempt, self._moved_back)
        except ItemLocked:
            self._park(attempt, self._parking)
        return None

    def postpone(self, message: MessageProxy, stamp: Stamp) -> bool:
        """Postpone a message whose actor is missing until a worker has the actor; return False when its item must fail.

        If another transaction has locked the item, the message is parked and its delivery deferred, so that messages of
        other jobs do not wait. Raises Stopping.
        """
        try:
            return self._process.retry_write(lambda conn: postpone(conn, stamp, message.actor_name))
        except ItemLocked:
            self._park(self._attempt_of(message, stamp), self._parking)
            return True

    def _attempt_of(self, message: MessageProxy, stamp: Stamp) -> Attempt:
        return Attempt(
            stamp.job, stamp.item, stamp.attempt, [message.delivery], self._controls, stamp.epoch, message.actor_name,
            message, stamp.standing, self._process.worker, self._hold_back, self._read_facts, self._process.url,
        )  # fmt: skip

    def _adopt(self, message: MessageProxy, *, redelivered: bool) -> tuple[Stamp, bool]:
        """Record a message without a stamp; return its new stamp, and whether it was recorded before. Raises Stopping.

        A message without an id that was not redelivered is a new message, even if an equal one was recorded.
        """
        item = foreign_item(message)
        out = self._process.retry(lambda: self._stored(item, redelivered=redelivered))
        if out.suspect and not message.message_id and not redelivered:
            out = self._process.retry(lambda: self._stored(replace(item, key=None), redelivered=False))
        return Stamp(out.job, out.item, 1, standing=True), out.suspect

    def _stored(self, item: NewItem, *, redelivered: bool) -> Outgoing:
        waiting = self.journal.send(item, redelivered=redelivered)
        while True:
            try:
                return waiting.result(RETRY_SECONDS)
            except TimeoutError:
                if self._process.stopping:
                    waiting.cancel()
                    raise Stopping from None

    def _is_blocked(self, attempt: Attempt) -> bool:
        """Return whether its job has stopped, is paused, or is held back. In the last two cases park its message."""
        control = self._blocking_control(attempt)
        if control is not None and not control.over:
            self._park(attempt, self._parking)
        return control is not None

    def _blocking_control(self, attempt: Attempt) -> JobControl | None:
        """Return the control state of a job that is over, paused, or held back in this attempt's lane, else None. A
        message with a newer epoch than the control state is not blocked: it was published after the job was resumed.
        """
        control = self._controls.get(attempt.job)
        if control is None or control.epoch < attempt.epoch or not (control.over or control.state == "paused"):
            return self._holding_control(attempt)
        return control

    def _holding_control(self, attempt: Attempt) -> JobControl | None:
        if (found := self._held_back.get(attempt.job)) is None or attempt.message is None:
            return None
        control, message = found[0], attempt.message
        lane = None if control.lane_by is None else lane_of_call(message.args, message.kwargs, control.lane_by)
        return None if held_lanes(*found).isdisjoint({"*", lane}) else control

    def _outdated(self, attempt: Attempt) -> bool:
        control = self._controls.get(attempt.job)
        return control is not None and control.epoch > attempt.epoch

    def _park(self, attempt: Attempt, parking: Parking) -> None:
        for delivery in attempt.deliveries:
            delivery.deferred = True
        parking.park(attempt)

    def _join(self, running: Attempt, copy: Attempt) -> bool:
        """Acknowledge a duplicate with the running attempt; return False when another attempt runs, or none."""
        with self._lock:
            if running.number != copy.number or self._attempts.get(running.key) is not running:
                return False
            self._share(running, copy)
            return True

    def _share(self, first: Attempt, copy: Attempt) -> None:
        first.deliveries += copy.deliveries
        for delivery in copy.deliveries:
            delivery.deferred = True

    def _begin(self, attempt: Attempt, *, suspect: bool) -> bool:
        """Wait for items that run alone, claim the item if the message is suspect, and begin. Returns False when the
        attempt must not run. Raises Stopping, AlreadyFailed, MovedBack, ItemLocked, DATA_ERRORS.
        """
        begun, control = False, None
        try:
            if self._may_begin(attempt, suspect=suspect):
                control = self._blocking_control(attempt)  # it may have changed meanwhile
                if control is None:
                    attempt.started = time.monotonic()
                    attempt.running = attempt.reported = suspect  # a claim is a row in `running`
                    self._attempts[attempt.key] = attempt
                    attempt.place = self._process.runs.begin(*attempt.key, attempt.number)
                    begun = True
                elif suspect:
                    self._release_claim(attempt)
        finally:
            if suspect:
                self._take_no_more_copies(attempt)
            if not begun:
                self._isolation.leave(attempt)
                if control is None or control.over:
                    self._acknowledge_copies(attempt)
        if control is not None and not control.over:
            self._park(attempt, self._parking)
        return begun

    # Messages that may be duplicates ---------------------------------------------------------------------------------

    def _joins_claim(self, attempt: Attempt) -> bool:
        """Return whether the same attempt is in flight, or being claimed: then this message is a duplicate.

        The duplicate is acknowledged together with the first message. If the first one's connection is lost, the
        duplicate remains. A message of the next attempt is no duplicate: after the death of a worker that had not
        acknowledged, the queue has both messages, and the newer one must not be dropped.
        """
        with self._lock:
            first = self._attempts.get(attempt.key)
            if first is None or first.number != attempt.number:
                first = self._claiming.setdefault((*attempt.key, attempt.number), attempt)
            if first is not attempt:
                self._share(first, attempt)
            return first is not attempt

    def _may_begin(self, attempt: Attempt, *, suspect: bool) -> bool:
        """Wait for items that run alone, then claim the item; return whether it may begin. The claim comes last: if
        this process dies, the crash counts for every claimed item. An item that would fail by its next crash runs
        alone.
        """
        self._isolation.enter(attempt, lead=current_attempt.get())
        if self._is_stale(attempt):
            return False
        if not suspect:
            return True
        claimed = self._claim(attempt)
        if claimed is not None and claimed.isolate:
            self._isolation.enter(attempt, alone=True)
            claimed = None if self._is_stale(attempt) else self._claim(attempt, alone=True)
        return claimed is not None

    def _claim(self, attempt: Attempt, *, alone: bool = False) -> Claim | None:
        def write(conn: Conn) -> Claim | None:
            if attempt.deliveries[0].redelivered:  # perhaps because a process died
                rescue_of_host(conn, self._process.runs)
            return claim(conn, attempt, self._process.worker, alone=alone)

        return self._process.retry_write(write)

    def _release_claim(self, attempt: Attempt) -> None:
        """Release a claim. If another transaction has locked it, `sweep.drop_unheld_running` releases it later."""

        def give_up(conn: Conn) -> None:
            with suppress(LockNotAvailable):
                claims.release_item(conn, *attempt.key, attempt.number, self._process.worker)

        self._process.retry_write(give_up)

    def _is_stale(self, attempt: Attempt) -> bool:
        """Return whether every connection that delivered it is lost: RabbitMQ redelivers it, and the redelivered
        message claims.
        """
        if not attempt.deliveries[0].stale:  # the usual case, without the lock
            return False
        with self._lock:
            stale = all(delivery.stale for delivery in attempt.deliveries)
            if stale:
                self._take_no_more_copies(attempt)
            return stale

    def _take_no_more_copies(self, attempt: Attempt) -> None:
        with self._lock:
            claiming = (*attempt.key, attempt.number)
            if self._claiming.get(claiming) is attempt:
                del self._claiming[claiming]

    def _acknowledge_copies(self, attempt: Attempt) -> None:
        """Acknowledge the duplicates of a message that must not run. A stopping process leaves them unacknowledged."""
        if not self._process.stopping:
            release((copy, False) for copy in attempt.deliveries[1:])

    # An attempt ends -------------------------------------------------------------------------------------------------

    def finish(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Give an ended attempt to the journal; return whether its message is to be dead-lettered."""
        attempt.end()
        self._process.runs.end(attempt.place)
        ended = time.monotonic()
        children = attempt.hooked
        if outcome.state in ("succeeded", "skipped"):
            children = attempt.sent + attempt.hooked
        elif attempt.returned:  # it failed since its result can't be kept; the hooks saw a success
            children = []
        if attempt.retry is not None and outcome.state != "retrying" and not attempt.returned:
            children = [*children, attempt.retry]
        failed = outcome.state == "failed"
        event = Event(
            attempt.job, attempt.item, attempt.number, outcome.state, ended - attempt.started, ended,
            self._process.worker, outcome.failure, outcome.retry, outcome.result, outcome.unkept, tuple(children),
            attempt.saves if outcome.state == "succeeded" else None, ran=attempt.running,
            dead=failed and all(delivery.carried for delivery in attempt.deliveries),
        )  # fmt: skip
        for delivery in attempt.deliveries:
            delivery.deferred = True
        (self.journal if event.saves is None else self.saving).add(Entry(attempt, event, failed))
        attempt.result = None
        return failed

    def acknowledge(self, entries: Sequence[Entry]) -> None:
        """Acknowledge the messages of these attempts, whose outcomes are committed."""
        ended: list[tuple[Delivery, bool]] = []
        with self._lock:
            for entry in entries:
                attempt = entry.attempt
                self._durations.add(attempt.actor, entry.event.elapsed)
                if self._attempts.get(attempt.key) is attempt:
                    del self._attempts[attempt.key]
                # Only now: until the commit, a crash of this process would be charged to it.
                self._isolation.leave(attempt)
                ended += [(delivery, entry.dead_letter) for delivery in attempt.deliveries]
        release(ended)

    # What is in flight -----------------------------------------------------------------------------------------------

    def attempts(self) -> list[Attempt]:
        """The attempts whose outcome is not committed."""
        return list(self._attempts.values())

    def mean_seconds(self) -> dict[str, float]:
        """Return {actor: mean seconds} for actors whose attempts ended since the last call; see `Durations.take`."""
        with self._lock:
            return self._durations.take()

    def typical_seconds(self, actor: str) -> float:
        """Return the mean seconds of this actor's attempts; 0 if none has ended."""
        with self._lock:
            return self._durations.typical(actor)

    def held(self) -> list[tuple[int, int]]:
        """Return (job, item) of all items that the process has in flight or prefetched, each once."""
        return list({*self._attempts, *self._consumers.prefetched()})

    def _job_facts(self, job: int) -> JobFacts:
        """Read a job's tenant, key and metadata. Retries while the database does not answer; raises Stopping if the
        process stops meanwhile.
        """
        return self._process.retry_write(lambda conn: jobs.job_facts(conn, job))

    def _hold_back(self, key: tuple[int, int], seconds: float, reason: str) -> None:
        """Hold back an item's lane, or its job, in a side thread; the actor goes on. If another transaction has locked
        the job, it is tried again after those of other jobs.
        """
        until, running = time.monotonic() + seconds, self._attempts.get(key)
        message = None if running is None else running.message
        of = {} if message is None else lanes_of_call(message.args, message.kwargs)

        def hold(conn: Conn) -> list[JobControl] | None:
            try:
                return lanes.hold(conn, *key, of, until - time.monotonic(), reason)
            except LockNotAvailable:
                return None

        def write() -> None:
            with suppress(Stopping):
                controls = self._process.retry_write(hold)
                if controls is not None:
                    self.apply_controls(controls)
                elif time.monotonic() < until and not self._process.stopping:
                    time.sleep(LOCKED_PAUSE_SECONDS)
                    self._holds.run(write)

        self._holds.run(write)

    def give_back(self, deliveries: Iterable[Delivery]) -> None:
        """Park messages that can't begin here: each is published again, by itself, and its delivery acknowledged."""
        for delivery in deliveries:
            if delivery.stamp is not None:
                attempt = Attempt(*delivery.stamp[:3], [delivery], self._controls, delivery.stamp.epoch)
                self._park(attempt, self._parking)

    def busy_threads(self, acks: Acks | None = None) -> int:
        """Return how many worker threads run or admit attempts; with `acks`, only those with deliveries of that
        connection. The attempts of a batch run in one thread.
        """
        busy = list(self._admitting.copy().items())
        busy += [(a.thread, delivery) for a in self.attempts() if not a.ended for delivery in a.deliveries]
        return len({thread for thread, delivery in busy if acks is None or delivery.acks is acks})

    def has_free_thread(self) -> bool:
        """Return whether a worker thread is free."""
        return self.busy_threads() < self._process.threads

    def held_up(self, acks: Acks) -> int:
        """Return how many deliveries of a connection have attempts whose outcome, or parking, waits for a lock."""
        put_off = [a for a in self.attempts() if a.put_off] + self._parking.put_off
        return sum(delivery.acks is acks for attempt in put_off for delivery in attempt.deliveries)

    def expects_more(self, ended: int) -> bool:
        """Return whether the process holds more than `ended` messages, so that a flush waits for them."""
        return len(self._attempts) > ended or self._consumers.open_deliveries() > ended

    def apply_controls(self, controls: Iterable[JobControl]) -> None:
        """Apply control states of jobs, from the next message on. States may arrive out of order: an older epoch is
        ignored.

        The states of jobs that just run are not kept, because a worker sees many jobs.
        """
        for control in controls:
            if control.holds:
                self._held_back = {job: one for job, one in self._held_back.copy().items() if held_lanes(*one)}
                self._held_back[control.job] = control, time.monotonic()
            elif control.holds is not None:
                self._held_back.pop(control.job, None)
            known = self._controls.get(control.job)
            if not control.untouched and (known is None or known.epoch <= control.epoch):
                self._controls[control.job] = control


def held_lanes(control: JobControl, came: float) -> set[str]:
    """Return the lanes that a control state still holds back; `came`: the monotonic time of its arrival."""
    return {lane for lane, seconds in (control.holds or {}).items() if came + seconds > time.monotonic()}
