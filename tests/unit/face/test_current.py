"""What an actor reports and asks: what is kept, what is ignored, and where."""

import contextvars
import io
import json
import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

import callboard
from callboard.middleware.message.attempt import Attempt, current_attempt
from callboard.middleware.submission.threads import carry_into_pools
from callboard.sql.rows import JobControl, JobFacts, NewItem, Progress
from callboard.web.app import create_app
from tests.support import documents


class BadText:
    """Neither a text nor a number, by what its code raises."""

    def __init__(self, error: type[BaseException] = KeyError) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error("no text")

    __repr__ = __float__ = __str__


@pytest.fixture
def attempt() -> Iterator[Attempt]:
    """An attempt that runs."""
    made = Attempt(1, 2, 1, [], {})
    token = current_attempt.set(made)
    yield made
    current_attempt.reset(token)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: callboard.save(b"SELECT 1"), "save\\(\\) takes its statement as a text"),  # type: ignore[arg-type]
        (lambda: callboard.save("SELECT 1", item=-1), "a position in the list of 2 items, not -1"),
        (lambda: callboard.save("SELECT 1", item=True), "a position in the list of 2 items, not True"),
        (lambda: callboard.hold("5"), "a number of seconds from 0, not '5'"),  # type: ignore[arg-type]
        (lambda: callboard.hold(float("nan")), "a number of seconds from 0, not nan"),
        (lambda: callboard.Postpone("1"), "a number of seconds from 0, not .1."),  # type: ignore[arg-type]
        (lambda: callboard.Postpone(None), "a number of seconds from 0, not None"),  # type: ignore[arg-type]
        (lambda: callboard.send_now("act"), "send_now\\(\\) takes a message"),
        (lambda: callboard.batch("act"), "batch takes a function"),  # type: ignore[arg-type]
        (lambda: callboard.in_context(5), "in_context takes a function"),  # type: ignore[arg-type]
        (lambda: callboard.install(0), "install\\(\\) takes a broker"),  # type: ignore[arg-type]
        (lambda: create_app(open_to_everyone="false"), "open_to_everyone must be True or False"),  # type: ignore[arg-type]
        (lambda: create_app(authenticate=False), "authenticate must be a function, or None"),  # type: ignore[arg-type]
        (lambda: create_app(hosts="example.com"), "hosts must be a list of host names"),
    ],
)
def test_an_argument_of_another_type_is_refused(call: Callable[[], object], says: str, attempt: Attempt) -> None:
    if "position" in says:
        attempt.batch = [attempt, attempt]
    with pytest.raises((TypeError, ValueError), match=says):
        call()


def test_a_log_line_names_its_item_once(attempt: Attempt) -> None:
    """However many handlers have the filter; outside an item it stays as it is."""
    attempt.worker = 7
    record = logging.LogRecord("app", logging.INFO, "app.py", 1, "half of %s", ("it",), None)
    for _ in range(2):
        assert callboard.LogContext().filter(record)
    assert record.getMessage() == "[item 1/2, attempt 1, worker 7] half of it"
    plain = logging.LogRecord("app", logging.INFO, "app.py", 1, "100 %", (), None)
    callboard.LogContext(prefix=False).filter(plain)
    assert (plain.getMessage(), plain.__dict__["job"], plain.__dict__["worker"]) == ("100 %", 1, 7)
    assert plain.__dict__["trace"] is None
    current_attempt.set(None)
    outside = logging.LogRecord("app", logging.INFO, "app.py", 1, "nothing", (), None)
    callboard.LogContext().filter(outside)
    assert (outside.getMessage(), outside.__dict__["job"]) == ("nothing", None)


def test_handlers_with_and_without_the_prefix_get_one_record(attempt: Attempt) -> None:
    """As a console and a file of JSON, in any order."""
    named, plain = callboard.LogContext(), callboard.LogContext(prefix=False)
    record = logging.LogRecord("app", logging.INFO, "app.py", 1, "half of %s", ("it",), None)
    seen = []
    for handler in (named, plain, plain, named):
        handler.filter(record)
        seen.append(record.getMessage())
        current_attempt.set(None)  # a QueueListener handles it in a thread of its own
    line = f"[item 1/2, attempt 1, worker {attempt.worker}] half of it"
    assert seen == [line, "half of it", "half of it", line]


def test_the_log_lines_as_json_that_a_page_shows(attempt: Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    configured: list[logging.StreamHandler[io.StringIO]] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **given: configured.extend(given["handlers"]))
    exec(documents.files()["json_lines.py"], {"__name__": "json_lines"})  # noqa: S102
    (handler,) = configured
    handler.setStream(io.StringIO())
    try:
        int("no\nnumber")
    except ValueError:
        record = logging.LogRecord("app", logging.ERROR, "app.py", 1, "half of %s", ("it",), sys.exc_info())
    handler.handle(record)
    current_attempt.set(None)
    handler.handle(logging.LogRecord("app", logging.INFO, "app.py", 1, "nothing", (), None))
    first, second = map(json.loads, handler.stream.getvalue().splitlines())
    assert [first[name] for name in ("level", "job", "item", "attempt", "message")] == ["ERROR", 1, 2, 1, "half of it"]
    assert "ValueError: invalid literal" in first["error"]
    assert (second["job"], second["message"]) == (None, "nothing")


def test_what_is_asked_of_the_job_is_read_when_it_is_asked(attempt: Attempt) -> None:
    asked: list[int] = []

    def read(job: int) -> JobFacts:
        asked.append(job)
        return JobFacts("acme", "k", '{"a": [1]}')

    attempt.read_facts = read
    now = callboard.current()
    assert asked == []
    now.metadata["a"].append(2)
    assert (now.tenant, now.key, now.metadata) == ("acme", "k", {"a": [1]})


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ((3, 10), (3.0, 10.0)),
        ((0, 0.5), (0.0, 0.5)),
        ((7,), (7.0, None)),
        ((10, 10), (10.0, 10.0)),
        ((11, 10), (10.0, 10.0)),  # an estimate that was passed
        ((0, 0), (0.0, None)),  # an empty file
        ((Decimal(1), Decimal(4)), (1.0, 4.0)),
        ((Fraction(1, 2), None), (0.5, None)),
    ],
)
def test_progress_is_kept(said: tuple[float, ...], kept: tuple[float, float | None], attempt: Attempt) -> None:
    callboard.progress(*said)
    assert attempt.progress == kept
    assert attempt.unreported


NONSENSE: list[tuple[Any, Any, Progress | None]] = [
    (-1, 10, None), (float("nan"), 10, None), (float("inf"), None, None), (10**400, None, None), (None, 10, None),
    (object(), 10, None), (BadText(), 10, None), (BadText(SystemExit), 10, None),
    (1, -10, Progress(1.0, None)), (1, float("nan"), Progress(1.0, None)), (1, BadText(), Progress(1.0, None)),
]  # fmt: skip


@pytest.mark.parametrize(("done", "total", "kept"), NONSENSE)
def test_a_progress_that_is_no_number_fails_nothing_and_is_logged_once_for_each_actor(
    done: Any, total: Any, kept: Progress | None, attempt: Attempt, caplog: pytest.LogCaptureFixture
) -> None:
    attempt.actor, attempt.progress = uuid.uuid4().hex, Progress(1.0, 2.0)
    for _ in range(3):
        callboard.progress(done, total)
    assert attempt.progress == (kept or (1.0, 2.0))
    (logged,) = caplog.records
    assert "both must be numbers from 0" in logged.getMessage()


@pytest.mark.parametrize("error", [KeyError, SystemExit])
def test_a_step_whose_text_cannot_be_had_fails_nothing(
    error: type[BaseException], attempt: Attempt, caplog: pytest.LogCaptureFixture
) -> None:
    attempt.actor = uuid.uuid4().hex
    callboard.step(BadText(error))  # type: ignore[arg-type]
    assert attempt.step is None
    assert f"a value without a text: {error.__name__}" in caplog.text


def test_what_is_told_outside_an_item_is_ignored(attempt: Attempt) -> None:
    attempt.ended = True
    callboard.progress(1, 2)
    callboard.progress(None, 2)  # type: ignore[arg-type]
    callboard.step("somewhere")
    assert (attempt.progress, attempt.step) == (None, None)
    with pytest.raises(callboard.NotInAnItem, match=r"current\(\) was called outside a tracked actor"):
        callboard.current()


def test_other_threads_run_for_the_item_that_gives_them_work(attempt: Attempt) -> None:
    def tell(number: int) -> int:
        callboard.progress(number, 4)
        return callboard.current().item

    carry_into_pools()
    carry_into_pools()
    outside = contextvars.Context()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tell, range(4))) == [2] * 4
        with pytest.raises(callboard.NotInAnItem):
            outside.run(pool.submit, callboard.current).result()
        assert outside.run(pool.submit, callboard.in_context(tell), 3).result() == 2
    assert attempt.progress is not None


def test_a_thread_may_go_on_when_its_item_has_ended(attempt: Attempt) -> None:
    """It sends as code outside an item does, and no child is lost between."""
    children = [NewItem(1, "a", "q", str(n), b"", None, 0) for n in range(2)]
    assert attempt.add_child(children[0])
    attempt.end()
    assert not attempt.add_child(children[1])
    assert attempt.sent == children[:1]


@pytest.mark.parametrize(
    ("epoch", "control", "cancelled"),
    [
        (0, None, False),
        (0, JobControl(1, "cancelled", 1), True),
        (0, JobControl(1, "running", 0, stopping=True), True),
        (1, JobControl(1, "failed", 1), True),
        # The job was retried since; this worker has not heard of it yet.
        (2, JobControl(1, "cancelled", 1), False),
        (2, JobControl(1, "paused", 2), False),
    ],
)
def test_an_item_is_cancelled_by_what_happened_to_its_job_after_its_message_was_sent(
    epoch: int, control: JobControl | None, cancelled: bool
) -> None:
    made = Attempt(1, 2, 1, [], {} if control is None else {1: control}, epoch)
    token = current_attempt.set(made)
    try:
        assert callboard.current().cancelled is cancelled
    finally:
        current_attempt.reset(token)
