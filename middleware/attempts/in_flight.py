"""The attempts of this process, from their message's arrival to the commit of their outcome."""

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

#: The most jobs whose tenant, key and metadata are kept: read once a job, when an actor asks.
CACHED_JOBS = 1_000


class InFlight:
    """The attempts in flight, by item. Set the journals before the first attempt ends; `saving` is that of the items
    that save something. `kept` is called when messages were given back to be published again, and `wake` by a message
    that comes to an idle process: it reads what became of jobs meanwhile.
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
        self.admitted = 0  # messages that threads took up; approximate
        self._admitting: dict[int, Delivery] = {}  # by thread

    # A message arrives -----------------------------------------------------------------------------------------------

    def admit(self, message: MessageProxy) -> Attempt | None:
        """Return the attempt that a message carries, which begins now; None when it must not run.

        Waits for the database and for the item's turn, raises nothing. A message that must not run is to be
        acknowledged, unless this made its delivery `deferred`; or rejected, if this made the message fail.
        """
        delivery: Delivery = message.delivery
        self.admitted += 1  # before it asks: see Heartbeat
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
            # Its worker died before it could reject it. A copy of it that was never delivered before is acknowledged.
            message.failed = delivery.came_before
        except DATA_ERRORS as error:
            log.error("a message can't be recorded, so it goes to the dead letters: %s", error)  # noqa: TRY400
            message.fail()
        except BaseException:
            # Dramatiq would log it and run the actor, untracked; or it would end the thread.
            log.exception("a message can't be begun; it is delivered again when this worker has ended")
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
            return None  # whether it is moved back is asked first
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
        """Let a message whose actor is missing wait for a worker that has it; return False when its item is to fail.

        If another transaction holds the item, the message is published again when that has ended: this defers its
        delivery, for the messages of other jobs must not wait. Raises Stopping.
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
        """Record a message that has no stamp; return its stamp, and whether it was recorded before. Raises Stopping.

        A message without an id that is no second delivery is another message, however equal to the first.
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
        """Return whether its job has stopped, is paused or held back; park its message unless the job has stopped."""
        control = self._blocking_control(attempt)
        if control is not None and not control.over:
            self._park(attempt, self._parking)
        return control is not None

    def _blocking_control(self, attempt: Attempt) -> JobControl | None:
        """Return the control state of a job that is over, paused, or held back in this attempt's lane, else None. A
        message of a newer epoch than that was sent because the job goes on.
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
        """Acknowledge a copy together with the attempt that runs; return False when another attempt runs, or none."""
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
        """Wait for the item's turn, claim the item if the message is suspect, and begin; return False when the attempt
        must not run. Raises Stopping, AlreadyFailed, MovedBack, ItemLocked, DATA_ERRORS.
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

    # Messages that may be a second copy ------------------------------------------------------------------------------

    def _joins_claim(self, attempt: Attempt) -> bool:
        """Return whether its item is in flight, or being claimed, for the same attempt: then this message is a copy.

        The copy is acknowledged with the first message, whose connection may be gone by then: then only the copy is
        left. The message of the next attempt is no copy: a worker that died before it acknowledged leaves both in the
        queue, and the newer one must not be dropped.
        """
        with self._lock:
            first = self._attempts.get(attempt.key)
            if first is None or first.number != attempt.number:
                first = self._claiming.setdefault((*attempt.key, attempt.number), attempt)
            if first is not attempt:
                self._share(first, attempt)
            return first is not attempt

    def _may_begin(self, attempt: Attempt, *, suspect: bool) -> bool:
        """Wait for the item's turn, then claim it; return whether it may begin. The claim comes last: if this process
        dies, the crash counts for every claimed item. An item whose next crash would be its last runs alone.
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
            if attempt.deliveries[0].redelivered:  # by a process that died, perhaps
                rescue_of_host(conn, self._process.runs)
            return claim(conn, attempt, self._process.worker, alone=alone)

        return self._process.retry_write(write)

    def _release_claim(self, attempt: Attempt) -> None:
        """Give up a claim. One that another transaction has locked is left to `sweep.drop_unheld_running`."""

        def give_up(conn: Conn) -> None:
            with suppress(LockNotAvailable):
                claims.release_item(conn, *attempt.key, attempt.number, self._process.worker)

        self._process.retry_write(give_up)

    def _is_stale(self, attempt: Attempt) -> bool:
        """Return whether every connection that brought it is gone: RabbitMQ delivers it again, and that copy claims."""
        if not attempt.deliveries[0].stale:  # as always but after a lost connection: without a lock
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
        """Acknowledge the copies of a message that must not run; those of a stopping process come again."""
        if not self._process.stopping:
            release((copy, False) for copy in attempt.deliveries[1:])

    # An attempt ends -------------------------------------------------------------------------------------------------

    def finish(self, attempt: Attempt, outcome: Outcome) -> bool:
        """Give an attempt that ended to the journal; return whether its message is to be dead-lettered."""
        attempt.end()
        self._process.runs.end(attempt.place)
        ended = time.monotonic()
        children = attempt.hooked
        if outcome.state in ("succeeded", "skipped"):
            children = attempt.sent + attempt.hooked
        elif attempt.returned:  # its result must be kept and can't be; the hooks took it for a success
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
        """Acknowledge the messages of these attempts: their outcomes are committed."""
        ended: list[tuple[Delivery, bool]] = []
        with self._lock:
            for entry in entries:
                attempt = entry.attempt
                self._durations.add(attempt.actor, entry.event.elapsed)
                if self._attempts.get(attempt.key) is attempt:
                    del self._attempts[attempt.key]
                # Not when it ends: until the commit the death of this process would be charged to it.
                self._isolation.leave(attempt)
                ended += [(delivery, entry.dead_letter) for delivery in attempt.deliveries]
        release(ended)

    # What is in flight -----------------------------------------------------------------------------------------------

    def attempts(self) -> list[Attempt]:
        """The attempts whose outcome is not committed."""
        return list(self._attempts.values())

    def mean_seconds(self) -> dict[str, float]:
        """Return the mean duration of the actors of which attempts ended since the last call; see `Durations`."""
        with self._lock:
            return self._durations.take()

    def typical_seconds(self, actor: str) -> float:
        """Return the seconds that an attempt of this actor takes; 0 if none has ended."""
        with self._lock:
            return self._durations.typical(actor)

    def held(self) -> list[tuple[int, int]]:
        """(job, item) of what the process has in flight or prefetched, each once."""
        return list({*self._attempts, *self._consumers.prefetched()})

    def _job_facts(self, job: int) -> JobFacts:
        """Return what an app gave with a job. Waits for a database that is away; raises Stopping when the process stops
        then.
        """
        return self._process.retry_write(lambda conn: jobs.job_facts(conn, job))

    def _hold_back(self, key: tuple[int, int], seconds: float, reason: str) -> None:
        """Hold back an item's lane, or its job, in a side thread: the actor goes on. One of a job that another
        transaction has locked is tried again behind those of others.
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
        """Have messages that can't begin here published again, each by itself, and acknowledge them then."""
        for delivery in deliveries:
            if delivery.stamp is not None:
                attempt = Attempt(*delivery.stamp[:3], [delivery], self._controls, delivery.stamp.epoch)
                self._park(attempt, self._parking)

    def busy_threads(self, acks: Acks | None = None) -> int:
        """Return how many worker threads run attempts, or wait for a claim or a turn of one; with `acks`: of deliveries
        of that connection. The attempts of a batch run in one thread.
        """
        busy = list(self._admitting.copy().items())
        busy += [(a.thread, delivery) for a in self.attempts() if not a.ended for delivery in a.deliveries]
        return len({thread for thread, delivery in busy if acks is None or delivery.acks is acks})

    def has_free_thread(self) -> bool:
        """Return whether a worker thread has nothing to do."""
        return self.busy_threads() < self._process.threads

    def held_up(self, acks: Acks) -> int:
        """Return how many deliveries of a connection belong to attempts whose outcome, or parking, waits for a lock."""
        put_off = [a for a in self.attempts() if a.put_off] + self._parking.put_off
        return sum(delivery.acks is acks for attempt in put_off for delivery in attempt.deliveries)

    def expects_more(self, ended: int) -> bool:
        """Return whether the process holds more messages than the `ended` ones, so a flush waits for them."""
        return len(self._attempts) > ended or self._consumers.open_deliveries() > ended

    def apply_controls(self, controls: Iterable[JobControl]) -> None:
        """Take control states of jobs, which hold from the next message on; an older state may come after a newer one.

        Those of jobs that simply run are not kept: a worker sees many jobs in its life.
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
    """The lanes that are held back still, by a control state that came at the monotonic time `came`."""
    return {lane for lane, seconds in (control.holds or {}).items() if came + seconds > time.monotonic()}
