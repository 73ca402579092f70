"""The hooks: they note how each attempt starts and ends, and leave the writing to the journal.

`Tracking` stands first in the broker's list, so it sees what all others decided; `Returned` stands last, so it knows
that the actor returned before anything else can go wrong.
"""

import logging
import sys
from functools import partial
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import Middleware, Retries, SkipMessage

from callboard.middleware.attempts.outcome import Ending, decide
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.delivery import Delivery, release
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.process.outage import ThrottleFilter, disconnected
from callboard.middleware.process.process import Stopping
from callboard.middleware.process.side_thread import SideThread
from callboard.middleware.runtime import Runtime

log = logging.getLogger("callboard.tracking")
_sparing = ThrottleFilter(disconnected)


class Discard(SkipMessage):
    """The message is a copy that must not run; it goes away and its item stays as it is."""


class Tracking(Middleware):
    """Records every message's start, success, failure and retry. The state of messages is in `runtime`."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._side_thread = SideThread("rejected")

    # Before ----------------------------------------------------------------------------------------------------------

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """Take the attempt in hand; raises Discard for a message that must not run."""
        delivery: Delivery = message.delivery
        delivery.judged = True
        delivery.attempt = self.runtime.in_flight.admit(message)
        if delivery.attempt is None:
            raise Discard("a copy of a message that is done, in hand elsewhere, or will come again")
        current_attempt.set(delivery.attempt)

    # After -----------------------------------------------------------------------------------------------------------

    def after_process_message(
        self, broker: dramatiq.Broker, message: MessageProxy, *, result: Any = None,
        exception: BaseException | None = None,
    ) -> None:  # fmt: skip
        """The attempt ended; the other hooks have decided what becomes of the message."""
        attempt = _in_hand(message)
        if attempt is not None:
            self._end(broker, message, attempt, exception=exception)

    def after_skip_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """The actor raised Skip, or a middleware dropped the message (its age limit)."""
        attempt = _in_hand(message)
        if attempt is not None:
            # Dramatiq calls this from its handler of the SkipMessage.
            self._end(broker, message, attempt, skip=str(sys.exc_info()[1] or ""))

    def before_ack(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """An interrupt that struck in another hook kept the end from being noted: it is noted now."""
        attempt = _in_hand(message)
        if attempt is not None:
            self._end(
                broker, message, attempt, exception=sys.exc_info()[1] or RuntimeError("a hook broke off")
            )

    def before_nack(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """A message that Dramatiq rejects unseen, for want of its actor, waits for a worker of another release that has
        it; when there never was one, it takes its item with it.

        This is the consumer's thread, which must not wait for the database or for the item's turn.
        """
        delivery: Delivery = message.delivery
        if not delivery.judged and delivery.stamp:
            delivery.aside = True
            self._side_thread.run(partial(self._reject, broker, message, delivery, delivery.stamp))

    def _reject(self, broker: dramatiq.Broker, message: MessageProxy, delivery: Delivery, own: Stamp) -> None:
        message.failed = False  # a copy that must not run goes, like any other
        if self._postponed(message, delivery, own):
            return
        delivery.attempt = self.runtime.in_flight.admit(message)
        if delivery.attempt is not None:
            message.fail()
            self._end(broker, message, delivery.attempt, exception=ActorNotFound(message.actor_name))
        elif not delivery.deferred:
            release([(delivery, message.failed)])

    def _postponed(self, message: MessageProxy, delivery: Delivery, own: Stamp) -> bool:
        try:
            postponed = self.runtime.postpone(own, message.actor_name)
        except Stopping:
            return True  # unacknowledged, so it comes again
        if postponed:
            release([(delivery, False)])
        return postponed

    def _end(
        self, broker: dramatiq.Broker, message: MessageProxy, attempt: Attempt, *,
        exception: BaseException | None = None, skip: str | None = None,
    ) -> None:  # fmt: skip
        current_attempt.set(None)
        outcome = decide(
            Ending(
                returned=attempt.returned,
                result=attempt.result,
                skip=skip,
                exception=exception,
                failed=message.failed,
                retry=attempt.retry,
                retries=attempt.returned or any(isinstance(m, Retries) for m in broker.middleware),
            )
        )
        message.failed = self.runtime.in_flight.finish(attempt, outcome)

    # The process -----------------------------------------------------------------------------------------------------

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Stand at the right places, refuse a database that doesn't fit, be known as a worker from now on."""
        place(broker, self)
        self.runtime.check()
        # Not after the boot: the consumers that start in between ask how many threads there are.
        self.runtime.open(worker, _actors(broker, worker.consumer_whitelist))

    def after_consumer_thread_boot(self, broker: dramatiq.Broker, thread: Any) -> None:
        """An outage of the broker is one event, not a line for each queue every three seconds."""
        if _sparing not in thread.logger.filters:
            thread.logger.addFilter(_sparing)

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """From now on nobody waits for a database that is away."""
        self.runtime.process.stopping = True

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Write what there is and say goodbye."""
        self.runtime.end()


class Returned(Middleware):
    """Notes, before any other hook runs, that the actor returned, and what."""

    def after_process_message(
        self, broker: dramatiq.Broker, message: MessageProxy, *, result: Any = None,
        exception: BaseException | None = None,
    ) -> None:  # fmt: skip
        """A success that a time limit strikes in a later hook stays a success."""
        attempt = _in_hand(message)
        if attempt is not None and not attempt.hooks:
            attempt.hooks = True
            if exception is None and not message.failed:
                attempt.returned, attempt.result = True, result

    def after_skip_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """What comes from here on is not the actor's."""
        attempt = _in_hand(message)
        if attempt is not None:
            attempt.hooks = True


def place(broker: dramatiq.Broker, tracking: Tracking) -> None:
    """Put Tracking first and Returned last; other middleware may have been added since."""
    last = next((m for m in broker.middleware if isinstance(m, Returned)), None) or Returned()
    others = [m for m in broker.middleware if not isinstance(m, Tracking | Returned)]
    broker.middleware[:] = [tracking, *others, last]
    if not any(isinstance(m, Retries) for m in others):
        log.warning("the broker has no Retries middleware: an item that raises is failed at once")


def _actors(broker: dramatiq.Broker, only: set[str] | None) -> dict[str, str]:
    """The actors ({name: queue}) of a worker that takes messages from `only` these queues, if any are named."""
    actors = broker.actors.values()
    return {a.actor_name: a.queue_name for a in actors if not only or a.queue_name in only}


def track(broker: dramatiq.Broker, runtime: Runtime) -> None:
    """Put the hooks at both ends of a broker's list of middleware."""
    place(broker, Tracking(runtime))
    # A tracked actor's return value is its item's result, so Dramatiq's warning that it is discarded is not true.
    logger = logging.getLogger("dramatiq.worker.WorkerThread")
    if _discards not in logger.filters:
        logger.addFilter(_discards)


def tracking_of(broker: dramatiq.Broker) -> Tracking | None:
    """The Tracking that is on a broker."""
    return next((m for m in broker.middleware if isinstance(m, Tracking)), None)


def _discards(record: logging.LogRecord) -> bool:
    # Dramatiq puts the actor's name into the text itself.
    return " returned a value that is not None" not in str(record.msg)


def _in_hand(message: MessageProxy) -> Attempt | None:
    attempt: Attempt | None = message.delivery.attempt
    return None if attempt is None or attempt.ended else attempt


def runtime_of(broker: dramatiq.Broker) -> Runtime:
    """The broker's runtime; raises NotTracked."""
    tracking = tracking_of(broker)
    if tracking is None:
        raise NotTracked("this broker is not tracked: call callboard.install() where the broker is made")
    return tracking.runtime


class NotTracked(RuntimeError):
    """The broker knows nothing of Callboard."""
