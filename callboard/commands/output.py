"""Output to the terminal: one JSON document, or tables and lines with escaped control characters."""

import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: The option of every command that prints data.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

#: Cells between two columns.
GAP = 2
#: Without a terminal: characters of a line with a bar, and maximum characters of a table row, which is one line.
PIPE_CHARS, PIPE_TABLE_CHARS = 200, 100_000

STYLES = {
    **dict.fromkeys(("running", "open"), "blue"),
    **dict.fromkeys(("succeeded", "completed", "alive"), "green"),
    **dict.fromkeys(("failed", "dead"), "red"),
    **dict.fromkeys(("retrying", "paused"), "yellow"),
    **dict.fromkeys(("cancelled", "skipped", "stopped", "stopping"), "bright_black"),
}


def prepare_streams() -> None:
    """Make every text printable: escape characters that a stream's encoding lacks, and replace a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """Discard the buffered text of standard output, which Python would write at its exit."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def console(pipe_chars: int = PIPE_CHARS) -> Console:
    """Return the console for standard output. In a pipe lines are not wrapped; bars and rows have at most `pipe_chars`.

    It `is_interactive` if lines can be redrawn: not in a dumb terminal, and not in a pipe that accepts colours.
    """
    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else pipe_chars, highlight=False, soft_wrap=not terminal,
        force_interactive=None if terminal else False,
    )  # fmt: skip


def one_of(words: Sequence[str], text: str, *names: str, metavar: str = "STATE") -> Any:
    """Return an option that takes one of these words; `text` is its help, without the words."""

    def parse(value: str) -> str:
        if value not in words:
            raise typer.BadParameter(f"must be one of {', '.join(words)}, not {value!r}")
        return value

    return typer.Option(*names, parser=parse, metavar=metavar, help=f"{text}: {', '.join(words)}.")


def document(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2))


def write(content: bytes) -> None:
    """Write bytes to standard output unchanged."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def plain(value: object) -> Text:
    """Return a value as text; None is empty. Escapes control characters, because a terminal would execute them."""
    text = "" if value is None else str(value)
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text("".join(printable))


def lines(text: str) -> None:
    """Print a text of several lines, with escaped control characters."""
    for line in text.splitlines():
        console().print(plain(line))


def state(word: str) -> Text:
    """Return a state in its colour."""
    return Text(word, style=STYLES.get(word, ""))


class Fit(NamedTuple):
    """How a table fits into the width of a terminal: texts in columns of `cut` are cut with …, to at least this many
    characters. If that is not enough, columns of `spare` are omitted, empty ones first.
    """

    cut: Mapping[str, int]
    spare: Sequence[str]

    def columns(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int) -> list[str]:
        """Return the columns for which there is room."""
        kept = list(columns)
        silent = [column for column in self.spare if not any(row[column] for row in rows)]
        for spared in (*silent, *self.spare):
            if sum(self._width(rows, column) for column in kept) + GAP * (len(kept) - 1) <= width:
                break
            kept = [column for column in kept if column != spared]
        return kept

    def _width(self, rows: Sequence[Mapping[str, Any]], column: str) -> int:
        cells = max(len(column), *(plain(row[column]).cell_len for row in rows))
        return min(cells, self.cut.get(column, cells))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], fit: Fit | None = None) -> None:
    """Print rows as a table: see `grid`."""
    console(PIPE_TABLE_CHARS).print(grid(rows, columns, fit))


def grid(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], fit: Fit | None = None) -> Table:
    """Return rows as a table, numbers aligned right, states in colour. With `fit` no line is wrapped in a terminal."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    if not (rows and console().is_terminal):
        fit = None
    if fit is not None:
        columns = fit.columns(rows, columns, console().width)
    lines = [[row[column] for column in columns] for row in rows]
    for place, column in enumerate(columns):
        numbers = any(isinstance(line[place], int | float) for line in lines)
        made.add_column(
            column.replace("_", " "), justify="right" if numbers else "left", overflow="fold",
            no_wrap=fit is not None and column not in fit.cut,
        )  # fmt: skip
    for line in lines:
        cells = zip(columns, line, strict=True)
        made.add_row(*(_cell(column, value, cut=fit is not None and column in fit.cut) for column, value in cells))
    return made


def _cell(column: str, value: Any, *, cut: bool) -> Text:
    text = state(value) if column == "state" else plain(value)
    if cut:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text
