"""What goes to the terminal: others' text can't command it."""

from callboard.commands import output
from callboard.commands.jobs import job_text


def test_control_characters_of_others_are_spelled_out() -> None:
    assert output.plain("a\x1b[2Jb\nc\u202e").plain == "a\\x1b[2Jb\\nc\\u202e"


def test_a_text_in_brackets_is_no_style() -> None:
    assert output.plain("[red]x[/red]").plain == "[red]x[/red]"


def test_nothing_is_called_done_before_it_is() -> None:
    assert job_text.percentage({"progress": 2 / 3}) == "66.6 %"
    assert job_text.percentage({"progress": 0.99999}) == "99.9 %"
    assert job_text.percentage({"progress": 1.0}) == "100 %"
