"""The words of a search become a filter of jobs, and what is no word gives an error that names those there are."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from callboard.sql.reads.job_filter import JobFilter, parse_arguments, parse_moment, parse_search, split_search
from callboard.sql.states import JOB_FINAL

OPEN = frozenset({"pending", "running", "paused"})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", JobFilter()),
        ("  ", JobFilter()),
        ("ads", JobFilter(names=("ads",))),
        ('"autumn ads" Ünï%_', JobFilter(names=("autumn ads", "Ünï%_"))),
        ('name:"a b" name:c:d', JobFilter(names=("a b", "c:d"))),
        ("state:failed  state:cancelled", JobFilter(states=frozenset({"failed", "cancelled"}))),
        ("is:open", JobFilter(states=OPEN)),
        ("is:ended state:failed state:paused", JobFilter(states=frozenset({"failed"}))),
        ("is:open is:ended", JobFilter(states=frozenset())),
        ("is:stalled not:standing is:failing", JobFilter(stalled=True, standing=False, failing=True)),
        ('actor:charge tenant:acme key:"a b"', JobFilter(actor="charge", tenant="acme", key="a b")),
        ("metadata.customer:17 metadata.a.b:x", JobFilter(metadata={"customer": "17", "a.b": "x"})),
        ("since:24h until:90s", JobFilter(created_after=timedelta(days=1), created_before=timedelta(seconds=90))),
        ("ended:2026-01-31", JobFilter(ended_after=datetime(2026, 1, 31, tzinfo=UTC))),
        ("actor:a actor:a", JobFilter(actor="a")),
    ],
)
def test_words_of_a_search(text: str, wanted: JobFilter) -> None:
    assert parse_search(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("state:odd", "state:odd is no word"), ("odd:1", "odd:1 is no word"), ("http://x", "http://x is no word"),
        ("is:odd", "is:odd is no word"), ("not:open", "not:open is no word"), ("metadata:x", "metadata:x is no word"),
        ("metadata.:x", "metadata.:x is no word"), ("state:", "state: is no word"),
        ('"open', '"open is no word'),
        ('a"b"', 'a"b" is no word'), ('"a"b', '"a"b is no word'), (":x", ":x is no word"),
        ('actor:""', "actor: is no word"),
    ],
)  # fmt: skip
def test_another_word_gives_an_error_that_names_those_there_are(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"state:STATE, .* a STATE is pending, running, ") as error:
        parse_search(text)
    assert str(error.value).startswith(why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("actor:a actor:b", "actor is given twice, as a and as b"),
        ("metadata.x:1 metadata.x:2", "metadata is given twice"),
        ("is:stalled not:stalled", "stalled is given twice"),
        ("since:soon", "since must be a span before now like"),
        ("until:2027-01-31T12:00", "until must be a span"),
        ("since:99999999999999d", "since must be a span"),
        ("ended:0001-01-01", "ended must be a span"),
        ("x" * 2_001, "a search has 2000 characters at most"),
        ("x" + " " * 2_000, "a search has 2000 characters at most"),
        ("x " * 51, "a search has 50 words at most"),
    ],
)
def test_a_value_that_makes_no_sense(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_search(text)


def test_a_shell_has_taken_the_quotes() -> None:
    assert parse_arguments(["autumn ads", "name:a b", "state:failed"]) == parse_search(
        '"autumn ads" name:"a b" state:failed'
    )
    with pytest.raises(ValueError, match="http://x is no word"):
        parse_arguments(["http://x"])


def test_words_are_split_for_who_shows_them() -> None:
    words = [("state", "failed"), ("name", "a b"), ("key", "c d")]
    assert list(split_search('state:failed "a b" key:"c d"')) == words


def test_a_moment_has_a_zone_or_is_a_day_or_a_span() -> None:
    noon = datetime(2027, 1, 31, 12, tzinfo=timezone(timedelta(hours=1)))
    assert parse_moment("since", "2027-01-31T12:00:00+01:00") == noon
    assert parse_moment("since", "1.5d") == timedelta(hours=36)


def test_two_filters_hold_both() -> None:
    one = JobFilter(states=OPEN, names=("a",), metadata={"x": "1"}, standing=False)
    other = JobFilter(states=frozenset({"paused", *JOB_FINAL}), names=("b",), metadata={"y": "2"}, actor="z")
    assert one.also(other) == JobFilter(
        states=frozenset({"paused"}), names=("a", "b"), metadata={"x": "1", "y": "2"}, standing=False, actor="z"
    )
    assert set(one.given) == {"states", "names", "metadata", "standing"}
