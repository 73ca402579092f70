"""Text from actors can't control the terminal, and percentages are rounded down."""

from callboard.commands import output
from callboard.commands.jobs import job_text


def test_control_characters_are_escaped() -> None:
    assert output.plain("a\x1b[2Jb\nc\u202e").plain == "a\\x1b[2Jb\\nc\\u202e"


def test_a_text_in_brackets_is_not_a_style() -> None:
    assert output.plain("[red]x[/red]").plain == "[red]x[/red]"


def test_only_a_job_that_is_done_is_at_100_percent() -> None:
    assert job_text.percentage({"progress": 2 / 3}) == "66.6 %"
    assert job_text.percentage({"progress": 0.99999}) == "99.9 %"
    assert job_text.percentage({"progress": 1.0}) == "100 %"
