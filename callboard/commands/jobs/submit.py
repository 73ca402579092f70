"""`callboard submit`: the lines of a file become the items of a job."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import psycopg
import typer

import callboard
from callboard.commands import actor_modules, output
from callboard.commands.database import database
from callboard.commands.errors import CommandError, first_line
from callboard.commands.jobs import follow, input_file, show
from callboard.commands.jobs.actions import (
    CONCURRENCY,
    At,
    ConcurrencyBy,
    Deadline,
    Delay,
    Keep,
    MaxFailures,
    Rate,
)
from callboard.commands.jobs.input_file import Bad
from callboard.commands.output import AsJson
from callboard.sql import timings

app = typer.Typer()

#: Bad lines that are named; of the others there is only the number.
NAMED = 10
#: What PostgreSQL's integer holds.
SMALLEST, LARGEST = -(2**31), 2**31 - 1
#: What makes a submission wrong, and not the machines it goes to.
REFUSALS = (
    callboard.UnknownActor,
    callboard.BadItem,
    callboard.SubmittedElsewhere,
)


CALLED = "An actor, or the URL of a webhook, to call"
OnComplete = Annotated[
    list[str] | None, typer.Option(metavar="ACTOR|URL", help=f"{CALLED} when it completes (may be repeated).")
]
OnFail = Annotated[
    list[str] | None, typer.Option(metavar="ACTOR|URL", help=f"{CALLED} when it fails (may be repeated).")
]
OnCancel = Annotated[
    list[str] | None,
    typer.Option(metavar="ACTOR|URL", help=f"{CALLED} when it is cancelled (may be repeated)."),
]


def a_format(value: str) -> str:
    """One of the formats."""
    if value not in input_file.FORMATS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(input_file.FORMATS)}")
    return value


def an_object(value: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise typer.BadParameter(f"no JSON object: {error}") from None


@app.command()
def submit(
    actor: Annotated[str, typer.Argument(metavar="ACTOR", help="An actor's name.", show_default=False)],
    file: Annotated[str, typer.Argument(metavar="[FILE|-]", help="What to read; -: standard input.")] = "-",
    *,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", parser=a_format, metavar="FORMAT", help="jsonl or csv; else by FILE's name."
        ),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out lines that are no items.")] = False,
    name: Annotated[str | None, typer.Option(help="The job's name; else the actor's.")] = None,
    key: Annotated[
        str | None, typer.Option(help="The same key gives the same job, and goes on where it broke off.")
    ] = None,
    item_key: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Items with the same value here are stored once.")
    ] = None,
    metadata: Annotated[
        Any, typer.Option(parser=an_object, metavar="JSON", help="An object to keep with the job.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose job it is.")] = None,
    priority: Annotated[int, typer.Option(min=SMALLEST, max=LARGEST, help="Lower is first.")] = 0,
    chunk: Annotated[
        int, typer.Option(min=1, max=timings.PUBLISH_WINDOW_ITEMS, help="Items that one message carries.")
    ] = 1,
    max_failures: MaxFailures = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=LARGEST, help=CONCURRENCY)] = None,
    concurrency_by: ConcurrencyBy = None,
    rate: Rate = None,
    deadline: Deadline = None,
    delay: Delay = None,
    at: At = None,
    on_complete: OnComplete = None,
    on_fail: OnFail = None,
    on_cancel: OnCancel = None,
    keep: Keep = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it; exit 0 only if each item succeeded or was skipped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job: each line of JSON Lines, or row of CSV, is an item. Prints the job's id.

    An object gives keyword arguments, an array arguments, anything else one argument. Nothing is stored of a file
    with a bad line, unless --skip-bad.
    """
    with database():  # says what is wrong with it, before anything is read
        pass
    form = form or input_file.SUFFIXES.get(Path(file).suffix.lower(), "jsonl")
    options = {
        "name": name,
        "key": key,
        "metadata": metadata,
        "tenant": tenant,
        "priority": priority,
        "chunk": chunk,
    }
    limits = {
        "max_failures": max_failures,
        "concurrency": concurrency,
        "concurrency_by": concurrency_by,
        "rate": rate,
        "deadline": deadline,
        "delay": delay,
        "at": at,
        "keep": keep,
    }
    callbacks = {"on_complete": on_complete, "on_fail": on_fail, "on_cancel": on_cancel}
    with input_file.opened(file) as source:
        bad = check(source, form, item_key, skip_bad=skip_bad)
        items = good(source, form, item_key)
        job = store(actor, items, told=not as_json, item_key=item_key, **options, **limits, **callbacks)
    if bad:
        typer.echo(f"callboard: left out {bad}", err=True)
    finish(job, wait=wait, as_json=as_json)


def check(source: BinaryIO, form: str, item_key: str | None, *, skip_bad: bool) -> str:
    """Read it all; returns what is to be said of bad lines, raises it as a Fault if they mustn't be."""
    number, named = 0, list[Bad]()
    for _, item in input_file.items(source, form, item_key):
        if isinstance(item, Bad):
            number += 1
            named += [item][: NAMED - len(named)]
    if not number:
        return ""
    more = f" and {number - NAMED:,} more" if number > NAMED else ""
    told = f"{number:,} bad line{'s' if number > 1 else ''}: {'; '.join(map(str, named))}{more}"
    if not skip_bad:
        raise CommandError(f"nothing is stored, for it has {told}; correct that, or say --skip-bad")
    return told


def good(source: BinaryIO, form: str, item_key: str | None) -> Iterator[Any]:
    """The items that are none of the bad."""
    return (item for _, item in input_file.items(source, form, item_key) if not isinstance(item, Bad))


def store(actor: str, items: Iterator[Any], *, told: bool, **options: Any) -> int:
    """Store the items, tell the job's id, publish the first; a broker that is away is only warned of. Raises Fault."""
    try:
        with HeldUp(), actor_modules.assembled():
            job = callboard.submit(actor, items, **options).id
            if told:
                typer.echo(job)
    except psycopg.DataError as error:
        raise CommandError(f"the database can't hold one of the options: {first_line(error)}") from error
    except REFUSALS as error:
        raise CommandError(first_line(error)) from error
    except ValueError as error:  # of an option
        raise CommandError(first_line(error), code=2) from error
    return job


class HeldUp(logging.Handler):
    """Says once, on stderr, that publishing is held up."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told = False

    def __enter__(self) -> None:
        logging.getLogger("pika").setLevel(logging.CRITICAL)  # it says the same, in many lines
        logging.getLogger("callboard.publisher").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("callboard.publisher").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Whatever it is, once."""
        if not self.told:
            self.told = True
            typer.echo(f"callboard: {record.getMessage()}; workers publish what is stored", err=True)


def finish(job: int, *, wait: bool, as_json: bool) -> None:
    """Wait for it, and tell of it."""
    if wait:
        end = follow.follow(job, quiet=as_json)
    elif as_json:
        with database() as conn:
            end = show.known(conn, job)
    if as_json:
        output.document(end)
    if wait:
        raise typer.Exit(0 if end["succeeded"] + end["skipped"] == end["total"] else 1)
