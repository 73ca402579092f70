"""`callboard submit`: the lines of a file become the items of a job."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

import callboard
from callboard import words
from callboard.commands import actor_modules, output
from callboard.commands.database import database
from callboard.commands.errors import CommandError, first_line
from callboard.commands.jobs import actions, follow, input_file
from callboard.commands.jobs.show import find_job
from callboard.commands.output import AsJson, one_of
from callboard.commands.services.signals import ends_at_second_ctrl_c
from callboard.middleware.submission import actor_lookup, item_encoding
from callboard.middleware.submission.json_lines import BadLine
from callboard.middleware.tracking import runtime_of
from callboard.sql import timings
from callboard.sql.limits import MAX_INT
from callboard.sql.signature import Signature

app = typer.Typer()

#: Maximum number of bad lines that an error lists; it only counts the others.
NAMED_BAD_LINES = 10
#: The text after the first Ctrl-C. A clean stop needs an answer of PostgreSQL.
STOPPING = "callboard: stopping when the database answers; Ctrl-C again stops at once"
#: Errors of the submission itself, not of the database or the broker.
REFUSALS = (callboard.UnknownActor, callboard.BadItem, callboard.SubmittedElsewhere)


def callback_option(end: str) -> Any:
    """Return the option for the callbacks at one of a job's ends; `end` completes the sentence “when the job …”."""
    text = f"Call this actor, or the URL of a webhook, when the job {end} (may be repeated)."
    return typer.Option(metavar="ACTOR|URL", help=text)


@app.command()
def submit(
    actor: Annotated[str, typer.Argument(metavar="ACTOR", help="The actor's name.", show_default=False)],
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="The file to read; -: standard input.")] = "-",
    *,
    form: Annotated[
        str | None,
        one_of(input_file.FORMATS, "The file's format, if its name does not show it", "--format", metavar="FORMAT"),
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="The file's encoding, like cp1252; default: UTF-8, or by its byte order mark.")
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help="The separator of CSV columns; default: a comma, or by the header.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Skip invalid lines.")] = False,
    name: Annotated[str | None, typer.Option(help="The job's name; default: the actor's.")] = None,
    key: Annotated[
        str | None, typer.Option(help="The same key gives the same job; an interrupted submission continues.")
    ] = None,
    key_reuse: Annotated[
        bool, typer.Option("--key-reuse", help="If the job with this key is finished, start a new one.")
    ] = False,
    item_key: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Store items with the same value in this field once.")
    ] = None,
    metadata: Annotated[
        Any, typer.Option(parser=actions.json_object, metavar="JSON", help="An object to store with the job.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="The tenant of the job.")] = None,
    priority: Annotated[int, typer.Option(min=-MAX_INT, max=MAX_INT, help="Jobs with a lower number run first.")] = 0,
    chunk: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=timings.PUBLISH_WINDOW_ITEMS,
            help="Maximum number of items in one message; default: as many as the actor processes in about 30 ms.",
        ),
    ] = None,
    max_failures: actions.MaxFailures = None,
    concurrency: Annotated[int | None, typer.Option(min=1, max=MAX_INT, help=actions.CONCURRENCY)] = None,
    concurrency_by: actions.ConcurrencyBy = None,
    lanes: Annotated[int | None, typer.Option(min=1, max=MAX_INT, help=actions.LANES)] = None,
    rate: actions.Rate = None,
    deadline: actions.Deadline = None,
    delay: actions.Delay = None,
    at: actions.At = None,
    on_complete: Annotated[list[str] | None, callback_option("completes")] = None,
    on_fail: Annotated[list[str] | None, callback_option("fails")] = None,
    on_cancel: Annotated[list[str] | None, callback_option("is cancelled")] = None,
    keep: actions.Keep = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Follow it; exit 0 only if every item succeeded or was skipped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a job: each line of JSON Lines, or row of CSV, is an item. Prints the job's id.

    A JSON object becomes keyword arguments, an array positional arguments, any other value one argument.
    A CSV row becomes keyword arguments, named by the header.
    If a line is invalid, nothing is stored, unless --skip-bad.
    Example: callboard submit count_letters words.jsonl --rate 100/m --wait
    """
    with database():  # a database that is down or has no schema is an error before the file is read
        pass
    given = form
    form = form or input_file.SUFFIXES.get(Path(file).suffix.lower(), "jsonl")
    options = {
        "name": name, "key": key, "key_reuse": key_reuse, "item_key": item_key, "metadata": metadata, "tenant": tenant,
        "priority": priority, "chunk": chunk, "max_failures": max_failures, "concurrency": concurrency,
        "concurrency_by": concurrency_by, "lanes": lanes, "rate": rate, "deadline": deadline, "delay": delay, "at": at,
        "keep": keep,
        "on_complete": on_complete, "on_fail": on_fail, "on_cancel": on_cancel,
    }  # fmt: skip
    sign = delimiter if delimiter is None else input_file.named_delimiter(delimiter)
    with refusals(), PublishingWarning(), ends_at_second_ctrl_c(STOPPING), actor_modules.assembled() as broker:
        signature = actor_lookup.signature(runtime_of(broker).write, broker, actor)
        with input_file.opened(file, encoding, say) as source:
            if given is None and form == "jsonl":
                input_file.check_no_array(source)
            divided_by = sign or (input_file.delimiter(source, say) if form == "csv" else ",")
            note = check(input_file.items(source, form, item_key, divided_by), signature, skip_bad=skip_bad)
            items = valid_items(input_file.items(source, form, item_key, divided_by), signature)
            job = callboard.submit(actor, items, **options).id
            if not as_json:
                typer.echo(job)
    if note:
        say(note)
    finish(job, wait=wait, as_json=as_json)


def say(what: str) -> None:
    """Print a line on stderr."""
    typer.echo(f"callboard: {what}", err=True)


def check(items: Iterator[tuple[int, Any]], signature: Signature | None, *, skip_bad: bool) -> str:
    """Read the whole file; return the text to print when the job is stored: that it has no items, or bad lines, or ''.

    Raises CommandError for bad lines unless `skip_bad`.
    """
    read, count, named = 0, 0, list[BadLine]()
    for read, item in enumerate(checked_items(items, signature), start=1):  # noqa: B007 — `read` is used after the loop
        if isinstance(item, BadLine):
            count += 1
            named += [item][: NAMED_BAD_LINES - len(named)]
    if not count:
        return "" if read else "the file has no items, so the job completes at once"
    more = f" and {count - NAMED_BAD_LINES:,} more" if count > NAMED_BAD_LINES else ""
    bad = f"{words.count(count, 'bad line')}: {'; '.join(map(str, named))}{more}"
    if not skip_bad:
        raise CommandError(f"nothing was stored, because the file has {bad}; correct it, or use --skip-bad")
    return f"skipped {bad}"


def valid_items(items: Iterator[tuple[int, Any]], signature: Signature | None) -> Iterator[Any]:
    """Yield the items of the file, without its bad lines."""
    return (item for item in checked_items(items, signature) if not isinstance(item, BadLine))


def checked_items(items: Iterator[tuple[int, Any]], signature: Signature | None) -> Iterator[Any]:
    """Yield the items, or a BadLine for an item whose arguments do not fit the actor."""
    for number, item in items:
        wrong = None
        if signature is not None and not isinstance(item, BadLine):
            wrong = signature.misfit(*item_encoding.call_of(item))
        yield BadLine(number, wrong) if wrong else item


@contextmanager
def refusals() -> Iterator[None]:
    """Convert the errors of a refused actor, item or option in its block to CommandErrors."""
    try:
        yield
    except REFUSALS as error:
        raise CommandError(first_line(error)) from error
    except ValueError as error:  # of an option
        raise CommandError(first_line(error), code=2) from error


class PublishingWarning(logging.Handler):
    """Prints the publisher's first warning in its block on stderr, as one line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.printed = False

    def __enter__(self) -> None:
        logging.getLogger("callboard.publisher").addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("callboard.publisher").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record if it is the first."""
        if not self.printed:
            self.printed = True
            typer.echo(f"callboard: {record.getMessage()}; workers publish the stored items", err=True)


def finish(number: int, *, wait: bool, as_json: bool) -> None:
    """Follow the job if `wait`; print it as JSON if `as_json`. With `wait` the exit code depends on the job."""
    if wait:
        [job] = follow.follow([number], quiet=as_json)
    elif as_json:
        with database() as conn:
            job = find_job(conn, number)
    if as_json:
        output.document(job)
    if wait:
        raise typer.Exit(follow.exit_code([job]))
