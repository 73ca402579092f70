"""Text from actors can't control the terminal, and percentages are rounded down."""

import io
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from callboard import words
from callboard.commands import output
from callboard.commands.jobs import follow, show


def test_control_characters_are_escaped() -> None:
    assert output.plain("a\x1b[2Jb\nc\u202e").plain == "a\\x1b[2Jb\\nc\\u202e"


def test_a_text_in_brackets_is_not_a_style() -> None:
    assert output.plain("[red]x[/red]").plain == "[red]x[/red]"


def test_only_a_job_that_is_done_is_at_100_percent() -> None:
    assert words.percent(2 / 3) == "66.6 %"
    assert words.percent(0.99999) == "99.9 %"
    assert words.percent(1.0) == "100 %"


def test_a_standing_job_of_today_is_open_and_not_running() -> None:
    job = {"standing": True, "state": "running", "stopping": None, "sealed": False}
    assert words.shown_state(job) == "open"
    assert words.shown_state({**job, "sealed": True}) == words.shown_state({**job, "standing": False}) == "running"
    assert [words.shown_state({**job, "state": state}) for state in ("paused", "pending")] == ["paused", "pending"]
    assert words.shown_state({**job, "stopping": "cancelled"}) == "stopping"


JOBS: list[dict[str, Any]] = [
    {
        "id": 60_251_590, "name": "charge the invoices of November", "state": "completed", "bar": "█" * 10,
        "progress": "100 %", "total": 1_000_000, "failed": 33, "rate": "", "left": "", "age": "2 min", "stalled": None,
    },
    {
        "id": 60_251_591, "name": "crawl", "state": "running", "bar": "█░░░░░░░░░", "progress": "12.3 %", "total": 400,
        "failed": 0, "rate": "1,234.5/s", "left": "0:21:09", "age": "2 min",
        "stalled": "no worker that is alive has the actor `charge`: start one",
    },
]  # fmt: skip


@pytest.mark.parametrize(
    ("width", "left_out"), [(200, ""), (130, ""), (100, "bar"), (80, "bar age rate"), (60, "bar age rate left stalled")]
)
def test_a_list_of_jobs_has_a_line_for_each_in_any_terminal(
    width: int, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns are left out, and texts are cut; where the columns are chosen, and where no terminal is, neither."""
    console = Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(output, "console", lambda *_: console)
    columns = show.SHOWN.split()
    with console.capture() as captured:
        output.table(JOBS, columns, show.FIT)
    header, first, second = captured.get().splitlines()
    assert header.split() == [column for column in columns if column not in left_out.split()]
    assert "charge th" in first
    assert (" 1000000 " in first, " 12.3 % " in second) == (True, True)
    assert ("…" in first + second) == (width < 200)
    with console.capture() as captured:
        output.table(JOBS, columns)
    assert "…" not in captured.get()


ACTORS = "analyse_answer, analyse_stock, ask_provider, create_ad, fetch_page, generate_queries, tell_watchlist"
ERROR = "callboard.actors.remote.Refused: 400: policy violation: the headline of ad group 17 has a phone number"
WORKER = {
    "id": 1_204,
    "state": "alive",
    "host": "worker-7d9c5b8f6-x2x4z",
    "pid": 36_667,
    "threads": 8,
    "held": 16,
    "beat": "2 s ago",
    "release": "2026.11.3",
    "trouble": "the database refuses connections",
    "actors": ACTORS,
}
ITEM = {
    "item": 123_456,
    "key": "customer-1774",
    "actor": "shop.billing:charge",
    "state": "retrying",
    "attempt": 2,
    "worker": 1_204,
    "step": "asks the bank",
    "progress": "1,204 of 9,000",
    "started_at": "2026-11-29T11:18:57.622Z",
    "finished_at": "2026-11-29T11:18:57.622Z",
    "error": ERROR,
}
GROUP = {
    "stage": 1, "id": "5f0c1d3c2f", "failed": 412, "retried": 1_003, "kind": "timed_out",
    "type": "callboard.actors.remote.Refused", "place": "actors/remote.py:41 in call",
    "last_at": "2026-11-29T11:18:57.622Z", "item": 123_456, "message": ERROR,
}  # fmt: skip


@pytest.mark.parametrize("width", range(60, 131, 10))
def test_items_errors_and_workers_have_a_line_each_in_any_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(output, "console", lambda *_: console)
    for row, columns, fit, always in (
        (ITEM, show.ITEM_SHOWN, show.ITEM_FIT, "item state error"),
        (GROUP, show.ERROR_SHOWN, show.ERROR_FIT, "id failed type message"),
        (WORKER, show.WORKER_SHOWN, show.WORKER_FIT, "id state host held actors"),
    ):
        blank = {name: None if name in ("error", "step", "key", "trouble") else value for name, value in row.items()}
        with console.capture() as captured:
            output.table([row, blank], columns.split(), fit)
        header, *lines = captured.get().splitlines()
        assert len(lines) == 2
        assert {*always.split()} <= {*header.split()}


def test_a_row_is_one_line_in_a_pipe_however_long_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{**ITEM, "error": ERROR * 9}, ITEM], show.ITEM_SHOWN.split(), show.ITEM_FIT)
    _, first, second = capsys.readouterr().out.splitlines()
    assert ERROR * 9 in first
    assert ERROR in second


def test_a_list_of_jobs_in_a_pipe_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(JOBS, show.SHOWN.split(), show.FIT)
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == show.SHOWN.split()
    assert ("charge the invoices of November" in first, second.rstrip().endswith("start one")) == (True, True)


class Terminal(io.StringIO):
    """A terminal that takes text."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "variables", "draws"),
    [
        (Terminal, {"TERM": "xterm"}, True), (Terminal, {"TERM": "dumb"}, False),
        (io.StringIO, {"TERM": "xterm"}, False), (io.StringIO, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)  # fmt: skip
def test_only_a_terminal_draws_its_lines_anew(
    stream: type[io.StringIO], variables: dict[str, str], draws: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that can't, which would show nothing before the end, nor a log that takes colours."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", out := stream())
    shown = iter(("first", "then"))
    monkeypatch.setattr(follow, "connect", lambda _: nullcontext())
    monkeypatch.setattr(follow, "database_address", lambda: "")
    written = list[str]()

    def read(_: object) -> str:
        written.append(out.getvalue())
        try:
            return next(shown)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(follow, "time", SimpleNamespace(sleep=lambda _: None))
    follow.follow_list(read)
    assert "first" in written[1]
    assert ("\x1b[" in written[-1]) == draws
