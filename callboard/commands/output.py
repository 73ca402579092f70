"""Prints to the terminal: one JSON document, or tables and lines in which control characters are escaped."""

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

#: The option of every command that prints something.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

#: Cells between two columns.
GAP = 2
#: Characters of a bar that goes to no terminal, and at most of a row of a table, which is one line there.
PIPE_CHARS, PIPE_TABLE_CHARS = 200, 100_000

STYLES = {
    **dict.fromkeys(("running", "open"), "blue"),
    **dict.fromkeys(("succeeded", "completed", "alive"), "green"),
    **dict.fromkeys(("failed", "dead"), "red"),
    **dict.fromkeys(("retrying", "paused"), "yellow"),
    **dict.fromkeys(("cancelled", "skipped", "stopped", "stopping"), "bright_black"),
}


def prepare_streams() -> None:
    """Make every text printable: escape what the encoding of a stream lacks, and replace a closed stream."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """Discard the text that standard output still holds: Python would write it at its end."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def console(pipe_chars: int = PIPE_CHARS) -> Console:
    """Standard output. Lines to a pipe are as long as they need to be, bars and rows of at most `pipe_chars` there.

    It `is_interactive` where lines can be drawn anew: not in a dumb terminal, nor in a pipe that takes colours.
    """
    terminal = sys.stdout.isatty()
    return Console(
        width=None if terminal else pipe_chars, highlight=False, soft_wrap=not terminal,
        force_interactive=None if terminal else False,
    )  # fmt: skip


def one_of(words: Sequence[str], text: str, *names: str, metavar: str = "STATE") -> Any:
    """An option that takes one of these words; `text` is its help, without the words."""

    def parse(value: str) -> str:
        if value not in words:
            raise typer.BadParameter(f"must be one of {', '.join(words)}, not {value!r}")
        return value

    return typer.Option(*names, parser=parse, metavar=metavar, help=f"{text}: {', '.join(words)}.")


def document(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2))


def write(content: bytes) -> None:
    """Write bytes to standard output as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def plain(value: object) -> Text:
    """A value as text; None is empty. Escapes control characters: a terminal would obey those in an actor's message."""
    text = "" if value is None else str(value)
    printable = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Text("".join(printable))


def lines(text: str) -> None:
    """Print a text of several lines, with control characters escaped."""
    for line in text.splitlines():
        console().print(plain(line))


def state(word: str) -> Text:
    """A state in its colour."""
    return Text(word, style=STYLES.get(word, ""))


class Fit(NamedTuple):
    """How a table fits into the lines of a terminal: texts in columns of `cut` are cut with …, to so many characters at
    the least. If that is not enough, columns of `spare` are left out, those without a text first.
    """

    cut: Mapping[str, int]
    spare: Sequence[str]

    def columns(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], width: int) -> list[str]:
        """Return those of the columns for which there is room."""
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
    """Print rows as `grid` has them."""
    console(PIPE_TABLE_CHARS).print(grid(rows, columns, fit))


def grid(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], fit: Fit | None = None) -> Table:
    """Rows as a table, numbers to the right, states in colour. In a terminal no line is wrapped if there is a `fit`."""
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
