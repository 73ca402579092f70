"""What Dramatiq logs of an attempt never ends its thread, and does not say that its result is discarded."""

import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from functools import partial, wraps
from queue import PriorityQueue
from typing import Any
from unittest.mock import Mock

import dramatiq
import pytest
from dramatiq.actor import Actor
from dramatiq.broker import MessageProxy
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries, SkipMessage
from dramatiq.worker import WorkerThread

from callboard.middleware.tracking import Tracking, make_formattable, may_retry


class WithoutCause(ValueError):
    """Python can't ask for its cause."""

    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError("no cause")


def bad_syntax() -> BaseException:
    """A SyntaxError whose text is no text, as a parser in C may make it."""
    error = SyntaxError("no text")
    error.text = 5  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ValueError("plain"), "ValueError: plain"),
        (bad_syntax, "SyntaxError: no text"),
        (WithoutCause, "test_tracking.WithoutCause: "),
    ],
)
def test_an_exception_that_can_not_be_formatted_is_logged(make: Callable[[], BaseException], text: str) -> None:
    written = io.StringIO()
    logger = logging.getLogger("callboard.test of odd errors")
    logger.addHandler(logging.StreamHandler(written))
    logger.addFilter(make_formattable)
    try:
        raise make()  # noqa: TRY301
    except BaseException:
        logger.exception("the attempt failed")
    assert "raise make()" in written.getvalue()
    assert text in written.getvalue()


@pytest.mark.parametrize(
    ("most", "counted", "again"), [(0, 0, True), (0, 1, False), (2, 2, True), (2, 3, False), (None, 9, True)]
)
def test_an_exception_that_can_not_be_formatted_has_no_more_attempts_than_any_other(
    most: int | None, counted: int, again: bool
) -> None:
    """Dramatiq counts a retry, formats the traceback, and would only then look at `max_retries`."""
    broker = StubBroker(middleware=[Retries()])

    @dramatiq.actor(broker=broker, max_retries=most)
    def fails() -> None:
        raise AssertionError

    message = MessageProxy(fails.message_with_options(retries=counted))
    assert may_retry(broker, message) == again
    hook = broker.middleware[-1]
    try:
        raise WithoutCause  # noqa: TRY301
    except WithoutCause as error:
        with pytest.raises(RuntimeError, match="no cause"):
            hook.after_process_message(broker, message, exception=error)
    assert message.options["retries"] == counted + 1


@pytest.mark.parametrize(("most", "counted"), [("3", 0), (3, "0")])
def test_a_number_of_attempts_that_can_not_be_compared_loses_the_retry(most: Any, counted: Any) -> None:
    """Dramatiq's hook raises, and the item ends as after any other hook that does."""
    broker = StubBroker(middleware=[Retries()])

    @dramatiq.actor(broker=broker, max_retries=most)
    def fails() -> None:
        raise AssertionError

    message = MessageProxy(fails.message_with_options(retries=counted))
    assert may_retry(broker, message)
    with pytest.raises(TypeError):
        broker.middleware[-1].after_process_message(broker, message, exception=ValueError())


@pytest.mark.parametrize(
    ("throws", "refused"),
    [(None, False), (ValueError, False), ((ValueError, OSError), False), ([ValueError], True), ("ValueError", True)],
)
def test_an_option_throws_by_which_each_error_would_end_a_thread_is_refused(throws: Any, refused: bool) -> None:
    """Dramatiq gives it to `isinstance`, where nothing catches what that raises."""
    broker = StubBroker(middleware=[Retries()])
    actor = dramatiq.actor(broker=broker, actor_name="careful", throws=throws)(print)
    with pytest.raises(ValueError, match="the option throws of careful must be") if refused else nullcontext():
        Tracking(Mock(), Mock()).before_declare_actor(broker, actor)


def yields(number: int) -> Iterator[int]:
    yield number


async def yields_later(number: int) -> AsyncIterator[int]:
    yield number


class Yields(dramatiq.GenericActor):
    """An actor of a class; without a broker it is not declared."""

    class Meta:
        abstract = True

    def perform(self, number: int) -> Iterator[int]:
        yield number


@wraps(yields)
def consumes(number: int) -> list[int]:
    return list(yields(number))


@pytest.mark.parametrize("function", [yields, yields_later, partial(yields, 1), Yields(), consumes, print])
def test_a_generator_which_dramatiq_would_not_run_is_refused(function: Any) -> None:
    broker = StubBroker(middleware=[])
    actor = Actor(function, broker=broker, actor_name="each", queue_name="default", priority=0, options={})
    refused = function not in (consumes, print)
    with pytest.raises(ValueError, match="the actor each has a yield, so a call") if refused else nullcontext():
        Tracking(Mock(), Mock()).before_declare_actor(broker, actor)


def test_an_item_with_a_result_makes_no_record_of_the_log() -> None:
    """It would take as long as the rest of an item's hooks."""
    broker = StubBroker(middleware=[])

    @dramatiq.actor(broker=broker)
    def ends(how: str) -> str:
        if how == "skip":
            raise SkipMessage
        return how

    queue: PriorityQueue[Any] = PriorityQueue()
    thread = WorkerThread(broker=broker, consumers={"default": Mock()}, work_queue=queue, worker_timeout=1)
    records: list[logging.LogRecord] = []

    def note(record: logging.LogRecord) -> bool:
        records.append(record)
        return False

    logger = logging.getLogger("dramatiq.worker.WorkerThread")
    logger.addFilter(note)
    try:
        Tracking(Mock(), Mock()).after_worker_thread_boot(broker, thread)
        for how in ("a result", "skip"):
            queue.put(1)
            thread.process_message(MessageProxy(ends.message(how)))
    finally:
        logger.removeFilter(note)
    assert [record.getMessage() for record in records] == ["Message ends('skip') was skipped."]
    assert records[0].funcName == "process_message"


def test_a_worker_that_cannot_be_registered_does_not_take_messages(caplog: pytest.LogCaptureFixture) -> None:
    """Dramatiq logs an error of a hook, and goes on: as a worker that nobody knows, and that records nothing."""
    broker = StubBroker(middleware=[])
    runtime = Mock()
    runtime.check.side_effect = RuntimeError("nobody thought of this")
    broker.add_middleware(Tracking(runtime, Mock()))
    with pytest.raises(SystemExit):
        dramatiq.Worker(broker).start()
    assert "this worker can't start" in caplog.text
    assert "nobody thought of this" in caplog.text
