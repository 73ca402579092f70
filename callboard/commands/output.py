"""What goes to the terminal: one JSON document, or tables and lines without anybody's control characters."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

#: The option of every command that looks.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

#: Columns of a table that no terminal shows.
WIDE = 200

STYLES = {
    "running": "blue",
    **dict.fromkeys(("succeeded", "completed", "alive"), "green"),
    **dict.fromkeys(("failed", "dead"), "red"),
    **dict.fromkeys(("retrying", "paused"), "yellow"),
    **dict.fromkeys(("cancelled", "skipped", "stopped"), "bright_black"),
}


def console() -> Console:
    """Standard output; a pipe gets lines as wide as they need."""
    terminal = sys.stdout.isatty()
    return Console(width=None if terminal else WIDE, highlight=False, soft_wrap=not terminal)


def one_of(words: Sequence[str], what: str) -> Any:
    """An option that takes one of a few words."""

    def parse(value: str) -> str:
        if value not in words:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(words)}")
        return value

    return typer.Option(parser=parse, metavar="STATE", help=f"{what}: {', '.join(words)}.")


def document(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2))


def count(number: int, what: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def plain(value: object) -> Text:
    """A value as text: what an actor raised may hold escape sequences, which a terminal would obey."""
    text = "" if value is None else str(value)
    return Text(
        "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    )


def state(word: str) -> Text:
    """A state in its colour."""
    return Text(word, style=STYLES.get(word, ""))


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows; numbers to the right, states in colour."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    lines = [[row[column] for column in columns] for row in rows]
    for place, column in enumerate(columns):
        numbers = any(isinstance(line[place], int | float) for line in lines)
        grid.add_column(column.replace("_", " "), justify="right" if numbers else "left", overflow="fold")
    for line in lines:
        cells = zip(columns, line, strict=True)
        grid.add_row(*(state(value) if column == "state" else plain(value) for column, value in cells))
    console().print(grid)
