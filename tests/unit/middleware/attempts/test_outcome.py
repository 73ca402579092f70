"""Every end of an attempt has one outcome, and every error that an actor raises can be stored."""

import json
import sys
from typing import Any

import pytest
from dramatiq.errors import Retry as RetryError
from dramatiq.middleware import TimeLimitExceeded
from hypothesis import given
from hypothesis import strategies as st

from callboard.middleware.attempts import outcome
from callboard.middleware.attempts.outcome import Outcome, decide
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


def test_a_scheduled_retry_is_kept_as_it_was_scheduled() -> None:
    assert decide(exception=ERROR, retry=LATER).retry == LATER


def test_a_lost_retry_is_scheduled_again() -> None:
    lost = decide(exception=ERROR).retry
    assert lost == Retry(outcome.LOST_RETRY_SECONDS)


def test_a_time_limit_has_a_kind_of_its_own() -> None:
    struck = decide(exception=TimeLimitExceeded(), failed=True).failure
    assert struck is not None
    assert struck.kind == "timed_out"
    other = decide(exception=ERROR, failed=True).failure
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


@pytest.mark.parametrize(
    "result",
    [object(), "x" * 300_000, "half \ud800 a pair", {(1, 2): 3}, endless(), {"a": {1j}}],
    ids=["object", "large", "surrogate", "tuple key", "endless", "complex"],
)
def test_a_result_that_cannot_be_stored_fails_its_item_and_says_so(result: Any) -> None:
    found = decide(returned=True, result=result)
    assert found.state == "failed"
    assert found.failure is not None
    assert found.failure.error_type.endswith("ResultNotStored")
    assert "can't be stored" in found.failure.message


def test_the_limit_of_results_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_RESULT_LIMIT", "10")
    assert decide(returned=True, result="12345678").state == "succeeded"
    found = decide(returned=True, result="123456789")
    assert found.failure is not None
    assert "11 bytes as JSON, and 10 are allowed" in found.failure.message


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
        (
            ExceptionGroup("several", [ValueError("a"), Mute()]),
            "ExceptionGroup",
            "several (2 sub-exceptions)",
        ),
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


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("within", [lambda n: n, lambda n: [1, n], lambda n: {"a": {"b": (n,)}}])
def test_a_number_that_json_does_not_have_is_not_stored_as_null(number: float, within: Any) -> None:
    found = decide(returned=True, result=within(number))
    assert found.state == "failed"
    assert found.failure is not None
    assert found.failure.message == f"its result can't be stored: {number} is no number in JSON"


def test_a_none_in_a_result_is_stored_as_null() -> None:
    assert decide(returned=True, result={"a": None}).result == '{"a":null}'
