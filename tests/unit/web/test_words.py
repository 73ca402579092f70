"""What the pages say of a job, made without a database."""

import re

from callboard.sql.states import ITEM_STATES
from callboard.web.pages import words

JOB = {"total": 10_000_000, "progress": 1.0, **dict.fromkeys(ITEM_STATES, 0)}
RECT = re.compile(r'<rect data-state="(\w+)" x="([\d.]+)%" y="-20%" width="([\d.]+)%" height="140%"/>')


def test_a_bar_has_each_state_once_and_shows_the_only_failure_of_millions() -> None:
    made = words.bar(JOB | {"succeeded": 9_999_999, "failed": 1})
    parts = {state: (begin, width) for state, begin, width in RECT.findall(made)}
    assert RECT.sub("", made) == ""
    assert list(parts) == [*(state for state in words.STATES if state != "failed"), "failed"]
    assert parts["succeeded"] == ("0.000", "100.000")
    assert parts["failed"] == ("100.000", "0.000")  # the sheet hides what is exactly 0%
    assert {width for state, (_, width) in parts.items() if state not in ("succeeded", "failed")} == {"0"}


def test_failures_are_told_beside_those_that_are_allowed() -> None:
    said = {0: "5 failed, 0 allowed", 10_000: "5 failed, 10,000 allowed", "5% of 9": "25.0 % failed, 5 % of 9 allowed"}
    for most, text in said.items():
        assert words.budget(JOB | {"failed": 5, "succeeded": 15, "limits": {"max_failures": most}}) == text
    assert words.budget(JOB | {"failed": 5, "limits": {}}) == ""


def test_a_short_span_is_said_in_milliseconds() -> None:
    ends = {"00.034": "34 ms", "00.999": "999 ms", "01.000": "1.0 s", "09.960": "10.0 s", "59.000": "59 s"}
    for end, said in ends.items():
        assert words.between("2026-11-22T12:00:00.000Z", f"2026-11-22T12:00:{end}Z") == said
    assert words.between("2026-11-22T12:00:00.001Z", "2026-11-22T12:00:00.000Z") == "0 ms"


def test_a_time_is_an_element_with_its_utc() -> None:
    element = '<time datetime="2026-11-22T12:00:00.123Z">2026-11-22 12:00:00 UTC</time>'
    assert words.time("2026-11-22T12:00:00.123Z") == element
    assert words.timed("<b> until 2026-11-22T12:00:00.123Z") == f"&lt;b&gt; until {element}"
