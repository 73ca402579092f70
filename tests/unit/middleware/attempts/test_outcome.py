"""Every end of an attempt has one outcome, and every error that an actor raises can be stored."""

import json
import sys
import tracemalloc
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from dramatiq.errors import Retry as RetryError
from dramatiq.middleware import TimeLimitExceeded
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.attempts import outcome
from callboard.middleware.attempts.outcome import Outcome, Postpone, decide
from callboard.middleware.message import failure
from callboard.middleware.message.failure import clean, describe
from callboard.sql.rows import Retry

LATER = Retry(3.0, b'{"retries": 1}', 5)
ERROR = ValueError("no")
TEXTS = st.text(st.characters(), max_size=200) | st.sampled_from(["\x00", "\ud800", "a\udfffb\x00"])


class Mute(Exception):
    """Its `__str__` raises an error."""

    def __str__(self) -> str:
        raise KeyError("nothing")


class Leaving(Exception):
    """Its `__str__` would end the thread."""

    def __str__(self) -> str:
        raise SystemExit("leaving")


class Strange(type):
    """Of a class whose very module can't be had."""

    def __getattribute__(cls, name: str) -> Any:
        if name == "__module__":
            raise SystemExit("leaving")
        return super().__getattribute__(name)


class NotText(Exception):
    """Its `__str__` gives no text."""

    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


def raised(error: BaseException) -> BaseException:
    """The error with a traceback."""
    try:
        raise error  # noqa: TRY301
    except BaseException as caught:  # noqa: BLE001 — the error is what the tests look at
        return caught


@pytest.mark.parametrize(
    ("ending", "state"),
    [
        ({"returned": True}, "succeeded"),
        ({"returned": True, "exception": TimeLimitExceeded(), "retry": LATER}, "succeeded"),
        ({"returned": True, "failed": True}, "succeeded"),
        ({"returned": True, "skip": "late"}, "succeeded"),
        ({"skip": "done before"}, "skipped"),
        ({"skip": ""}, "skipped"),
        ({"skip": "age limit", "failed": True}, "failed"),
        ({"exception": ERROR, "failed": True}, "failed"),
        ({"exception": ERROR, "failed": True, "retry": LATER}, "failed"),
        ({"exception": ERROR, "retry": LATER}, "retrying"),
        ({"exception": ERROR}, "retrying"),
        ({"exception": ERROR, "has_retries": False}, "failed"),
        ({"exception": ERROR, "has_retries": False, "retry": LATER}, "retrying"),
        ({"exception": RetryError(delay=3), "retry": LATER}, "retrying"),
        ({"exception": SystemExit(1), "retry": LATER}, "retrying"),
        ({"failed": True}, "failed"),
    ],
)
def test_an_ending_has_one_outcome(ending: dict[str, Any], state: str) -> None:
    assert decide(**ending).state == state


def test_a_scheduled_retry_is_kept_and_a_lost_one_is_scheduled_again() -> None:
    assert decide(exception=ERROR, retry=LATER).retry == LATER
    assert decide(exception=ERROR).retry == Retry(outcome.LOST_RETRY_SECONDS)


@pytest.mark.parametrize(
    ("number", "error", "state"),
    [
        (outcome.LOST_RETRY_ATTEMPTS - 1, ERROR, "retrying"),
        (outcome.LOST_RETRY_ATTEMPTS, ERROR, "failed"),
        (outcome.LOST_RETRY_ATTEMPTS, TimeLimitExceeded(), "retrying"),
    ],
)
def test_a_retry_that_is_always_lost_does_not_run_for_ever(number: int, error: BaseException, state: str) -> None:
    """An interrupt strikes by chance; an error of a hook comes each time."""
    assert decide(exception=error, number=number).state == state


def test_a_time_limit_has_a_kind_of_its_own() -> None:
    struck, other = (decide(exception=error, failed=True).failure for error in (TimeLimitExceeded(), ERROR))
    assert struck is not None
    assert (struck.kind, struck.message) == ("timed_out", "its time limit passed")
    assert other is not None
    assert other.kind == "failed"


def test_a_message_failed_before_its_actor_ran_has_a_reason() -> None:
    failure = decide(failed=True).failure
    assert failure is not None
    assert failure.error_type == "Rejected"
    assert "before the actor ran" in failure.message


ENDINGS: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    returned=st.booleans(),
    result=st.none(),
    skip=st.none() | TEXTS,
    exception=st.none() | st.sampled_from([ERROR, TimeLimitExceeded(), SystemExit(), Mute()]),
    failed=st.booleans(),
    retry=st.none() | st.just(LATER),
    has_retries=st.booleans(),
)


@given(ENDINGS)
def test_every_outcome_has_what_its_state_needs(ending: dict[str, Any]) -> None:
    """A success has no failure; all else has one. A retry goes with `retrying`, and nothing else does."""
    found: Outcome = decide(**ending)
    assert (found.failure is None) == (found.state == "succeeded")
    assert (found.retry is not None) == (found.state == "retrying")
    assert ending["returned"] == (found.state == "succeeded")
    if found.failure is not None:
        assert (found.failure.kind == "skipped") == (found.state == "skipped")
        for text in (found.failure.message, found.failure.error_type, found.failure.traceback):
            assert "\x00" not in text
            text.encode()


@pytest.mark.parametrize("result", [{"a": [1, None]}, "text", 0, False, [], "a \x00 in it", 1e300, 2**70])
def test_a_result_is_kept_as_json(result: Any) -> None:
    found = decide(returned=True, result=result)
    assert found.state == "succeeded"
    assert found.result is not None
    assert "\x00" not in found.result
    assert json.loads(found.result) == result


def endless() -> list[Any]:
    """A list that contains itself."""
    loop: list[Any] = []
    loop.append(loop)
    return loop


class Text(str):
    """As the strings of lxml, of Django and of numpy."""

    __slots__ = ()


class Number(float):
    """As numpy's float64."""


@pytest.mark.parametrize(
    "result",
    [
        Text("a"), Number(1.5), {Text("a"): [Number(1.5)]}, {True: 1, None: 2, 3: 4}, "half \ud800 a pair",
        OrderedDict(a=Number(1)),
    ],
)  # fmt: skip
def test_a_result_is_kept_as_python_writes_json(result: Any) -> None:
    found = decide(returned=True, result=result)
    assert (found.state, found.unkept) == ("succeeded", None)
    assert found.result is not None
    assert json.loads(found.result) == json.loads(json.dumps(result))


@dataclass
class Row:
    """As an app returns it."""

    at: datetime
    note: Text | None = None


def test_a_result_that_msgspec_knows_is_kept_also_beside_what_it_does_not_know() -> None:
    row = Row(datetime(2027, 1, 31, tzinfo=UTC))
    kept = {"at": "2027-01-31T00:00:00Z", "note": None}
    assert json.loads(decide(returned=True, result=[row]).result or "") == [kept]
    assert json.loads(decide(returned=True, result=[row, Text("a")]).result or "") == [kept, "a"]


class Stamp(datetime):
    """As a time of pandas, pendulum or freezegun."""


class Day(date):
    """As a day of pendulum."""


class Span(timedelta):
    """As a span of pandas."""


EAST = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("result", "plain"),
    [
        (Stamp(2027, 1, 31, 12, tzinfo=UTC), datetime(2027, 1, 31, 12, tzinfo=UTC)),
        (Stamp(2027, 1, 31, 12, 0, 0, 5, EAST), datetime(2027, 1, 31, 12, 0, 0, 5, EAST)),
        (Day(2027, 1, 31), date(2027, 1, 31)), (Span(days=1, seconds=2), timedelta(days=1, seconds=2)),
    ],
)  # fmt: skip
def test_a_subclass_of_a_time_is_kept_as_its_class_is(result: Any, plain: Any) -> None:
    for one, other in ((result, plain), ([None, {"a": result}], [None, {"a": plain}]), (Row(result), Row(plain))):
        kept = decide(returned=True, result=other)
        assert kept.unkept is None
        assert decide(returned=True, result=one) == kept
    beside = decide(returned=True, result=[Text("a"), Row(plain)])
    assert decide(returned=True, result=[Text("a"), Row(result)]) == beside


class NoTime(Stamp):
    """As the NaT of pandas, which is a datetime."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, _: object) -> bool:
        return False


UNKEPT = {
    "no time": (NoTime(1, 1, 1), "NoTime is unsupported"),
    "object": (object(), "object is unsupported"),
    "large": ("x" * 300_000, "300,002 bytes as JSON, and 262,144 are allowed (CALLBOARD_RESULT_LIMIT)"),
    "tuple key": ({(1, 2): 3}, "tuple"),
    "endless": (endless(), "Circular reference"),
    "complex": ({"a": {1j}}, "complex"),
    "generator": ((n for n in "a"), "generator is unsupported"),
    "path": (Path("x"), "Path is unsupported"),
    "nan": (float("nan"), "not JSON compliant"),
    "infinite within": ([1, {"a": {"b": (float("-inf"),)}}], "not JSON compliant"),
    "nan of a subclass": (Number("nan"), "not JSON compliant"),
}


@pytest.mark.parametrize(("result", "why"), UNKEPT.values(), ids=UNKEPT)
def test_a_success_whose_result_cannot_be_kept_stays_one_and_a_strict_actor_fails_by_it(result: Any, why: str) -> None:
    found = decide(returned=True, result=result)
    assert (found.state, found.result, found.failure) == ("succeeded", None, None)
    assert why in (found.unkept or "")
    found = decide(returned=True, result=result, strict=True)
    assert (found.state, found.unkept) == ("failed", None)
    assert found.failure is not None
    assert found.failure.error_type.endswith("ResultNotKept")
    assert found.failure.message.startswith("its result can't be kept: ")
    assert why in found.failure.message


def test_the_limit_of_results_can_be_set() -> None:
    assert decide(returned=True, result="12345678", result_limit=10).result == '"12345678"'
    found = decide(returned=True, result="123456789", result_limit=10)
    assert "11 bytes as JSON, and 10 are allowed" in (found.unkept or "")


def test_a_result_that_is_too_large_takes_the_memory_of_one_copy() -> None:
    result = "x" * 10_000_000
    tracemalloc.start()
    decide(returned=True, result=result)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.9 * len(result)


@given(TEXTS)
def test_clean_text_can_be_stored_and_clean_stays_clean(text: str) -> None:
    found = clean(text)
    assert "\x00" not in found
    assert found.encode().decode() == found
    assert clean(found) == found


@pytest.mark.parametrize("character", ["a", "ä", "\x00", "\ud800", "😀"])
def test_clean_text_is_no_longer_than_allowed(character: str) -> None:
    assert len(clean(character * 9_000)) <= failure.MESSAGE_CHARS


def test_text_within_the_limit_is_kept_as_it_is() -> None:
    assert clean("a" * failure.MESSAGE_CHARS) == "a" * failure.MESSAGE_CHARS
    assert clean("a" * (failure.MESSAGE_CHARS + 1)).endswith("a…")


@pytest.mark.parametrize(
    ("error", "type_name", "message"),
    [
        (ValueError("no"), "ValueError", "no"),
        (ValueError("a \x00 in it"), "ValueError", "a \\x00 in it"),
        (ValueError("half \ud800 a pair"), "ValueError", "half \\ud800 a pair"),
        (Mute(), "Mute", "(no text: KeyError in __str__)"),
        (NotText(), "NotText", "(no text: TypeError in __str__)"),
        (Leaving(), "Leaving", "(no text: SystemExit in __str__)"),
        (ExceptionGroup("several", [ValueError("a"), Mute()]), "ExceptionGroup", "several (2 sub-exceptions)"),
        (KeyboardInterrupt(), "KeyboardInterrupt", ""),
    ],
)
def test_an_error_is_described(error: BaseException, type_name: str, message: str) -> None:
    found = describe(raised(error))
    assert found.error_type.rpartition(".")[2] == type_name
    assert found.message == message
    assert "test_outcome.py" in found.place
    assert found.place.endswith("in raised")
    assert type_name in found.traceback
    assert found.traceback_size >= len(found.traceback) > 0


class Http404(Exception):
    """A class that its module has."""


@pytest.mark.parametrize(
    ("kind", "type_name"),
    [
        (type("Customer4711", (Exception,), {}), f"{__name__}.Customer#"),
        (type("Order_" + "9f" * 16, (Exception,), {"__module__": "gone"}), "gone.Order_#"),
        (type("Http2Error", (Exception,), {}), f"{__name__}.Http2Error"),
        (type("DeadBeefError", (Exception,), {}), f"{__name__}.DeadBeefError"),
        (Http404, f"{__name__}.Http404"),
    ],
)
def test_numbers_are_replaced_in_the_name_of_a_class_that_is_made_at_run_time(kind: Any, type_name: str) -> None:
    """Else each would be a group of errors of its own, and nothing bounds their number."""
    assert describe(kind("no")).error_type == type_name


def test_an_error_that_lets_nothing_be_read_ends_no_thread() -> None:
    found = describe(raised(Strange("Odd", (Exception,), {})()))
    assert (found.kind, found.error_type) == ("failed", "Unknown")
    assert "can't be described: <SystemExit object" in found.message


def test_a_result_that_would_end_the_thread_is_not_kept() -> None:
    @dataclass
    class Lazy:
        @property
        def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
            raise SystemExit("leaving")

    found = decide(returned=True, result={Leaving(): Lazy()})
    assert (found.state, found.result) == ("succeeded", None)
    assert found.unkept


def test_the_type_of_an_error_has_its_module() -> None:
    assert describe(Mute()).error_type == f"{__name__}.Mute"


def test_a_long_message_loses_its_end_and_a_long_traceback_its_start() -> None:
    found = describe(raised(ValueError("x" * 50_000)))
    assert len(found.message) == failure.MESSAGE_CHARS
    assert len(found.traceback) == failure.TRACEBACK_CHARS
    assert found.traceback_size > 50_000


def test_a_recursion_without_end_is_described() -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1)

    try:
        deeper(0)
    except RecursionError as error:
        found = describe(error)
    assert found.error_type == "RecursionError"
    assert "deeper" in found.traceback
    assert found.place.endswith("in deeper")
    assert len(found.traceback) <= failure.TRACEBACK_CHARS


def test_an_endless_chain_of_causes_is_described() -> None:
    error: Exception = ValueError("first")
    for n in range(sys.getrecursionlimit() * 2):
        following = ValueError(str(n))
        following.__cause__ = error
        error = following
    found = describe(error)
    assert found.message == str(n)


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert describe(ValueError("no")).place == ""


def test_a_postponed_attempt_has_another_and_has_not_failed() -> None:
    found = decide(skip="429", retry=LATER, postponed=True)
    assert (found.state, found.retry) == ("retrying", LATER)
    assert found.failure is not None
    assert (found.failure.kind, found.failure.message, found.failure.pattern) == ("postponed", "429", "")
    assert decide(skip="too old", failed=True, retry=LATER, postponed=True).state == "failed"


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e12])
def test_an_item_is_postponed_by_seconds_that_make_sense(seconds: float) -> None:
    with pytest.raises(ValueError, match="Postpone takes a number of seconds from 0"):
        Postpone(seconds)
