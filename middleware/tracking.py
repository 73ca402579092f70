"""The hooks: they begin and end each attempt, decide its outcome, and give it to the journal.

`Tracking` is first in the broker's list of middleware, so its `after` hooks run last, after all others have decided.
`Returned` is last, so its `after` hooks run first, before another hook can fail.
"""

import gc
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache, partial, wraps
from typing import Any, NoReturn

import dramatiq
from dramatiq.asyncio import EventLoopThread, set_event_loop_thread
from dramatiq.broker import MessageProxy
from dramatiq.errors import ActorNotFound
from dramatiq.middleware import Middleware, MiddlewareError, Retries, SkipMessage
from dramatiq.middleware.asyncio import AsyncIO
from dramatiq.results import Results

from callboard.middleware.attempts.outcome import Outcome, Postpone, decide
from callboard.middleware.hook_cache import HookCache
from callboard.middleware.journal import metrics
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.message.delivery import Delivery, attempt_of, delivery_of, release
from callboard.middleware.message.envelope import is_name, timestamp_ms
from callboard.middleware.message.failure import describe, text_of
from callboard.middleware.message.stamp import Stamp
from callboard.middleware.ping import PING, add_ping
from callboard.middleware.process.outage import OutageLog, ThrottleFilter, disconnected
from callboard.middleware.process.process import Stopping
from callboard.middleware.process.side_thread import SideThread
from callboard.middleware.runtime import Runtime
from callboard.middleware.submission.actor_lookup import function_of, own_signature
from callboard.sql import settings
from callboard.sql.rows import Retry

#: The most characters of an actor's name: an index contains it.
NAME_CHARACTERS = 300

log = logging.getLogger("callboard.tracking")
_throttle = ThrottleFilter(disconnected)
_log_waiting = OutageLog(log, "messages wait for a worker that has their actor: %s")


class Discard(SkipMessage):
    """Skips a message that must not run; its item stays as it is."""


class ResultsKept:
    """A logger without Dramatiq's warning that a return value is discarded. A logging filter would cost as much time as
    the rest of an item's hooks, because Python first makes a log record. A LoggerAdapter would not call methods of the
    logger that an app's tests replace.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger, name)

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        """Log any other warning."""
        if " returned a value that is not None" not in str(msg):
            self._logger.warning(msg, *args, stacklevel=2, **kwargs)


class BadDeclaration(MiddlewareError, ValueError):
    """An actor is declared with a name that can't be recorded, or with an invalid option."""


class NotRun(TypeError):
    """An actor's function was called, and did not run."""

    def __init__(self) -> None:
        super().__init__(
            "the actor's function was called, and did not run: it is async or has a yield, and a decorator around it "
            "neither awaits nor iterates what the call returns. Make that decorator do so"
        )


class Tracking(Middleware):
    """Records the start, the success, the failure and the retry of every message.

    An actor may have the option ``results="strict"``: an item whose result can't be kept fails.
    """

    actor_options = {"results"}  # noqa: RUF012 — Dramatiq's own do so

    def __init__(self, runtime: Runtime, hooks: HookCache) -> None:
        self.runtime = runtime
        self._hooks = hooks
        self._side_thread = SideThread("rejected")
        self._shares_metrics = False
        self._owns_process = False  # whether Dramatiq's command started this process as a worker

    @cached_property
    def _result_limit(self) -> int:
        return settings.RESULT_LIMIT.get()

    def before_declare_actor(self, broker: dramatiq.Broker, actor: dramatiq.Actor[..., Any]) -> None:
        """Raise BadDeclaration for a name that can't be recorded, an invalid option `results`, an option `throws` that
        would end Dramatiq's thread, or a generator function, which Dramatiq would call without running it.
        """
        name = actor.actor_name
        if not 0 < len(name) <= NAME_CHARACTERS or not is_name(name):
            raise BadDeclaration(
                f"an actor's name has 1 to {NAME_CHARACTERS} characters, and no control characters, not {name!r:.100}"
            )
        if (given := actor.options.get("results")) not in (None, "strict"):
            raise BadDeclaration(f"the option results of {actor.actor_name} must be 'strict' or None, not {given!r}")
        throws = actor.options.get("throws")
        try:
            isinstance(None, throws or ())
        except TypeError:
            raise BadDeclaration(
                f"the option throws of {actor.actor_name} must be an exception's class or a tuple of them, not "
                f"{throws!r:.100}: each error of the actor would end a thread of the worker"
            ) from None
        if is_generator(function_of(actor)):
            raise BadDeclaration(f"the actor {name} has a yield, so a call would not run it: write it without yield")

    def after_declare_actor(self, broker: dramatiq.Broker, actor: dramatiq.Actor[..., Any]) -> None:
        """Announce an actor that is declared after the worker started; start the event loop for an async one."""
        if self.runtime.process.worker:
            _start_event_loop(broker)
        self.runtime.add_actor(actor)

    # One message -----------------------------------------------------------------------------------------------------

    def before_process_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """Begin the attempt that the message carries; raises Discard when it must not run."""
        delivery = delivery_of(message)
        if delivery is None:
            return
        delivery.seen = True
        delivery.attempt = self.runtime.in_flight.admit(message)
        if delivery.attempt is None:
            delivery.dropped = not message.failed
            raise Discard("its item is done, runs elsewhere, or its message is delivered again")
        current_attempt.set(delivery.attempt)
        if is_async(broker.get_actor(message.actor_name)):
            # Read here, because in the coroutine the query would block the event loop of all actors.
            with suppress(Stopping):
                delivery.attempt.read_facts(delivery.attempt.job)

    def after_process_message(
        self, broker: dramatiq.Broker, message: MessageProxy, *, result: Any = None,
        exception: BaseException | None = None,
    ) -> None:  # fmt: skip
        """End the attempt."""
        self._end(broker, message, exception=exception)

    def after_skip_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """End the attempt: the actor raised Skip, or a middleware skipped the message. Expired messages fail."""
        # Dramatiq calls this while it handles the SkipMessage.
        reason = sys.exc_info()[1]
        self._end(
            broker, message, skip="" if reason is None else text_of(reason),
            postpone=reason if isinstance(reason, Postpone) else None,
        )  # fmt: skip

    def before_ack(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """End the attempt if an interrupt in another hook prevented `after_process_message`."""
        if attempt_of(message) is not None:
            self._end(broker, message, exception=sys.exc_info()[1] or RuntimeError("a hook was interrupted"))

    def requeue_without_actor(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """Dramatiq nacks a message whose actor is missing before any other hook runs. Requeue it for a worker that has
        the actor; fail the item if no worker announced the actor for too long.

        Runs in the consumer's thread, which must not block.
        """
        delivery = delivery_of(message)
        if delivery and not delivery.seen and delivery.stamp is None:
            log.error("this worker has no actor %r: a message that no job counts is a dead letter", message.actor_name)
        elif delivery and not delivery.seen and delivery.stamp and delivery.begin():
            delivery.seen = delivery.aside = delivery.dropped = True
            self._side_thread.run(partial(self._requeue, broker, message, delivery, delivery.stamp))

    def _requeue(self, broker: dramatiq.Broker, message: MessageProxy, delivery: Delivery, stamp: Stamp) -> None:
        message.failed = False  # a duplicate that must not run is acknowledged
        try:
            postponed = self.runtime.in_flight.postpone(message, stamp)
        except Stopping:
            return  # the message is never acknowledged, so it is redelivered
        if postponed:
            _log_waiting(ActorNotFound(f"this one has no {message.actor_name!r}"))
        else:
            delivery.attempt = self.runtime.in_flight.admit(message)
        if delivery.attempt is not None:
            message.fail()
            why = f"no worker announced the actor {message.actor_name} in the time that CALLBOARD_ACTOR_WAIT gives"
            self._end(broker, message, exception=ActorNotFound(why))
            self._hooks.before("nack", message)
            self._hooks.after("nack", message)
        elif not delivery.deferred:
            release([(delivery, message.failed)])

    def _end(
        self, broker: dramatiq.Broker, message: MessageProxy, *, exception: BaseException | None = None,
        skip: str | None = None, postpone: Postpone | None = None,
    ) -> None:  # fmt: skip
        """End the message's attempt, if it has one, and set whether the message has failed."""
        attempt = attempt_of(message)
        if attempt is None:
            return
        current_attempt.set(None)
        end = partial(self._finish, broker, message, attempt, exception=exception, skip=skip, postpone=postpone)
        try:
            end()
        except BaseException:  # noqa: BLE001 — an interrupt that came after the actor would end this thread
            end()

    def _finish(
        self, broker: dramatiq.Broker, message: MessageProxy, attempt: Attempt, *, exception: BaseException | None,
        skip: str | None, postpone: Postpone | None,
    ) -> None:  # fmt: skip
        again = attempt.retry
        retry = None if again is None else Retry(again.delay, again.options, again.sent_ms)
        if postpone is not None:
            retry = Retry(postpone.seconds, sent_ms=timestamp_ms(message.message_timestamp))
        outcome = decide(
            returned=attempt.returned, result=attempt.result, skip=skip, exception=exception, failed=message.failed,
            retry=retry, postponed=postpone is not None, number=attempt.number,
            has_retries=attempt.returned or may_retry(broker, message),
            strict=attempt.returned and broker.get_actor(message.actor_name).options.get("results") == "strict",
            result_limit=self._result_limit,
        )  # fmt: skip
        if outcome.unkept is not None and is_unrun(broker.get_actor(message.actor_name), attempt.result):
            outcome = Outcome("failed", describe(NotRun()))
        message.failed = self.runtime.in_flight.finish(attempt, outcome)
        message.delivery.attempt = None

    # The process -----------------------------------------------------------------------------------------------------

    @property
    def forks(self) -> list[Callable[[], int]]:
        """The functions that Dramatiq runs in their own processes: the metrics server, unless Dramatiq's own runs."""
        wanted = settings.METRICS_PORT.get() is not None and not self._shares_metrics
        return [metrics.serve] if wanted else []

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        """Start the metrics, if they are on, before the app's modules may import Prometheus's client."""
        self._owns_process = True
        stock = sys.modules.get("dramatiq.middleware.prometheus")  # its import would create its folder
        used = stock is not None and any(isinstance(m, stock.Prometheus) for m in broker.middleware)
        shared = stock.DB_PATH if stock is not None and used else None
        self._shares_metrics = shared is not None
        metrics.start(shared)

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Check the middleware's order and the database, and register the process as a worker.

        Raises SystemExit on an error: otherwise Dramatiq would log the error, and still consume messages.
        """
        try:
            self._boot(broker, worker)
        except Exception:
            log.critical("this worker can't start", exc_info=True)
            sys.exit(1)

    def _boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        order_middleware(broker, self)
        _send_before_results(broker, self.runtime)
        self.runtime.check()
        # Before the boot ends: the consumers start then, and need the number of threads.
        only = worker.consumer_whitelist
        own = [a for a in broker.actors.values() if a.actor_name != PING]
        actors = [a for a in own if not only or a.queue_name in only]
        signatures = {a.actor_name: found for a in actors if (found := own_signature(a)) is not None}
        self.runtime.open(worker, {a.actor_name: a.queue_name for a in actors}, signatures)
        _start_event_loop(broker)
        add_ping(broker)
        if self._owns_process:
            # Without this, Python's garbage collector would traverse all imported objects once per several thousand
            # items: a tenth of the CPU time of a fast actor, with all threads stopped.
            gc.collect()
            gc.freeze()

    def after_consumer_thread_boot(self, broker: dramatiq.Broker, thread: Any) -> None:
        """Throttle the log of a broker outage: Dramatiq would log it for each queue every three seconds."""
        if _throttle not in thread.logger.filters:
            thread.logger.addFilter(_throttle)

    def after_worker_thread_boot(self, broker: dramatiq.Broker, thread: Any) -> None:
        """Suppress the thread's warning that a return value is discarded: it becomes the item's result."""
        thread.logger = ResultsKept(thread.logger)

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Mark the process as stopping: from now on no thread waits for a database that does not answer."""
        self.runtime.process.stopping = True

    def after_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Write the last outcomes and close. Remove the worker's own middleware, which Dramatiq leaves on the broker:
        it would make the stopped worker consume each queue that is declared later, and take messages from the next
        worker without running them.
        """
        self.runtime.end()
        metrics.stop()
        broker.middleware[:] = [m for m in broker.middleware if not _is_of(m, worker)]


def _is_of(middleware: Any, worker: dramatiq.Worker) -> bool:
    """Return whether a worker has added this middleware to its broker, not the app."""
    return type(middleware).__module__ == dramatiq.worker.__name__ and middleware.worker is worker


class Returned(Middleware):
    """Records that the actor returned, and its result, before any other hook runs."""

    def after_process_message(
        self, broker: dramatiq.Broker, message: MessageProxy, *, result: Any = None,
        exception: BaseException | None = None,
    ) -> None:  # fmt: skip
        """Record a success, which remains one even if a time limit interrupts a later hook."""
        attempt = attempt_of(message)
        if attempt is not None and attempt.forked:
            end_child(message, exception)
        if attempt is not None and attempt.hooks:
            attempt.interrupted = True
        elif attempt is not None:
            attempt.hooks = True
            if exception is None and not message.failed:
                attempt.returned, attempt.result = True, result

    def after_skip_message(self, broker: dramatiq.Broker, message: MessageProxy) -> None:
        """Record that the actor is done: from now on messages are sent by hooks."""
        if (attempt := attempt_of(message)) is not None:
            if attempt.forked:
                end_child(message, None)
            attempt.hooks = True


def end_child(message: MessageProxy, exception: BaseException | None) -> NoReturn:
    """End a child process that an actor forked and that has left the actor, as by `sys.exit`. In it the thread would
    go on as one of the worker: it would record the attempt and run the messages that the parent has fetched.
    """
    log.error("a process that %s forked has left the actor, so it ends: call os._exit in it", message)
    code = exception.code if isinstance(exception, SystemExit) else int(exception is not None)
    os._exit(code if isinstance(code, int) else int(code is not None))


def order_middleware(broker: dramatiq.Broker, tracking: Tracking) -> None:
    """Move Tracking to the start and Returned to the end of the broker's list of middleware."""
    last = next((m for m in broker.middleware if isinstance(m, Returned)), None) or Returned()
    others = [m for m in broker.middleware if not isinstance(m, Tracking | Returned)]
    broker.middleware[:] = [tracking, *others, last]
    if not any(isinstance(m, Retries) for m in others):
        log.warning("the broker has no Retries middleware: an item that raises is failed at once")


def track(broker: dramatiq.Broker, tracking: Tracking) -> None:
    """Add the hooks to a broker."""
    order_middleware(broker, tracking)
    for actor in broker.actors.values():
        tracking.before_declare_actor(broker, actor)
    broker.actor_options |= Tracking.actor_options
    logger = logging.getLogger("dramatiq.worker.WorkerThread")
    logger.addFilter(make_formattable)
    broker.logger.addFilter(make_formattable)


@lru_cache(maxsize=1024)
def is_async(actor: dramatiq.Actor[..., Any]) -> bool:
    """Return whether an actor is an `async def`."""
    return inspect.iscoroutinefunction(inspect.unwrap(actor.fn))


def is_generator(function: Any) -> bool:
    """Return whether a call of this function only makes a generator."""
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def is_unrun(actor: dramatiq.Actor[..., Any], result: Any) -> bool:
    """Return whether an actor returned its own function, not run: a coroutine that nobody awaited, or a generator."""
    if inspect.iscoroutine(result):
        return inspect.getcoroutinestate(result) == inspect.CORO_CREATED
    code = getattr(result, "gi_code", None) or getattr(result, "ag_code", None)
    return code is not None and code is getattr(inspect.unwrap(function_of(actor)), "__code__", None)


class EventLoop(AsyncIO):
    """Dramatiq's event loop, in a daemon thread: a second SIGTERM, or a failed start, ends only the main thread."""

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Start the thread."""
        self.start()

    def start(self) -> None:
        """Start the thread; the worker may already run."""
        thread = EventLoopThread(self.logger)
        thread.daemon = True
        thread.start(timeout=1.0)
        set_event_loop_thread(thread)


def _start_event_loop(broker: dramatiq.Broker) -> None:
    """Add Dramatiq's middleware that runs coroutines, if an actor needs it and the app has not added it."""
    needed = any(is_async(actor) for actor in broker.actors.values())
    if needed and not any(isinstance(m, AsyncIO) for m in broker.middleware):
        event_loop = EventLoop()
        broker.middleware.insert(-1, event_loop)
        event_loop.start()  # its own `before_worker_boot` is not called: the worker boots already, or runs


def _send_before_results(broker: dramatiq.Broker, runtime: Runtime) -> None:
    """Make `get_result` first send the messages that the attempt keeps: a kept message would never get a result."""
    for backend in (m.backend for m in broker.middleware if isinstance(m, Results)):
        if "get_result" not in vars(backend):
            get_result = backend.get_result

            @wraps(get_result)
            def sent_before(*args: Any, _get: Any = get_result, **options: Any) -> Any:
                runtime.send_kept()
                return _get(*args, **options)

            backend.get_result = sent_before


def may_retry(broker: dramatiq.Broker, message: MessageProxy) -> bool:
    """Return whether Dramatiq may retry a message. Its hook formats the traceback before it compares the count of
    retries with `max_retries`. If the exception can't be formatted, or `max_retries` is no number (as from an
    environment variable), the hook raises, and no retry is scheduled.
    """
    retries = next((m for m in broker.middleware if isinstance(m, Retries)), None)
    if retries is None:
        return False
    actor = broker.actors.get(message.actor_name)
    options = {"max_retries": retries.max_retries, **(actor.options if actor else {}), **message.options}
    most, counted = options["max_retries"], options.get("retries", 0)
    try:
        return most is None or counted <= most or options.get("retry_when", retries.retry_when) is not None
    except TypeError:
        return True


def tracking_of(broker: dramatiq.Broker) -> Tracking | None:
    """Return the broker's Tracking, or None."""
    return next((m for m in broker.middleware if isinstance(m, Tracking)), None)


def make_formattable(record: logging.LogRecord) -> bool:
    """Replace the exception of a log record if Python can't format it, such as a SyntaxError with odd attributes.
    Returns True, because it is a logging filter.

    The log handler would raise, and end a worker's thread.
    """
    if record.exc_info and (error := record.exc_info[1]) is not None:
        try:
            traceback.format_exception(error, limit=0)
        except BaseException:  # noqa: BLE001 — its own code, or its cause's, may raise anything
            found = describe(error)
            record.exc_info, record.exc_text = None, f"{found.traceback}{found.error_type}: {found.message}"
    return True


def runtime_of(broker: dramatiq.Broker) -> Runtime:
    """Return the broker's runtime; raises NotTracked."""
    tracking = tracking_of(broker)
    if tracking is None:
        raise NotTracked(
            "this broker is not tracked: call callboard.install() where the broker is made, with DATABASE_URL set; "
            "without an actor, the broker is the one that dramatiq.set_broker() got"
        )
    return tracking.runtime


class NotTracked(RuntimeError):
    """The broker is not tracked."""
