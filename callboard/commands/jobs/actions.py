"""Commands that say something to a job: `cancel pause resume retry limit actions`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs import job_text
from callboard.commands.jobs.show import After, JobId, Limit, known, listing
from callboard.commands.output import AsJson, one_of
from callboard.job import acting
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.states import RETRIABLE
from callboard.sql.writes import actions as writes
from callboard.sql.writes import retry as retries
from callboard.sql.writes.actions import Requester
from callboard.sql.writes.retry import RetrySelection

app = typer.Typer()

T = TypeVar("T")

CONCURRENCY = "Items of it in RabbitMQ and in hand at most, over all workers."
MaxFailures = Annotated[
    str | None, typer.Option(metavar="N|N%", help="Failed items past which it stops: 10, 5%, '5% of 1000'.")
]
ConcurrencyBy = Annotated[
    str | None,
    typer.Option(metavar="FIELD=N", help="The same per value of an argument: customer_id=5, or 0=5."),
]
Rate = Annotated[str | None, typer.Option(metavar="N/s|m|h", help="Items started at most: 10/s, 100/m.")]
Deadline = Annotated[
    str | None,
    typer.Option(metavar="TIME|SPAN", help="When what has not started is cancelled: 2h, or a time."),
]
Delay = Annotated[str | None, typer.Option(metavar="SPAN", help="The same as --at, with a span: 90s, 5m.")]
At = Annotated[
    str | None, typer.Option(metavar="TIME|SPAN", help="Start nothing before: 90s, 5m, or a time.")
]
Keep = Annotated[
    str | None, typer.Option(metavar="SPAN", help="How long it stays when it is over: 30d, or forever.")
]


@app.command()
def cancel(
    job: JobId,
    *,
    reason: Annotated[str | None, typer.Option(help="Why; it is shown with the job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start nothing more of a job; it is cancelled when what is in hand has ended."""
    with sensible():
        _tell(job, lambda conn, by: writes.cancel(conn, job, by, reason=reason), as_json=as_json)


@app.command()
def pause(job: JobId, *, as_json: AsJson = False) -> None:
    """Start nothing more of a job until it is resumed."""
    _tell(job, lambda conn, by: writes.pause(conn, job, by), as_json=as_json)


@app.command()
def resume(job: JobId, *, as_json: AsJson = False) -> None:
    """Go on with a paused job."""
    _tell(job, lambda conn, by: writes.resume(conn, job, by), as_json=as_json)


@app.command()
def limit(
    job: JobId,
    *,
    max_failures: MaxFailures = None,
    concurrency: Annotated[str | None, typer.Option(metavar="N", help=CONCURRENCY)] = None,
    concurrency_by: ConcurrencyBy = None,
    rate: Rate = None,
    priority: Annotated[str | None, typer.Option(metavar="N", help="Lower is first.")] = None,
    deadline: Deadline = None,
    at: At = None,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """Change what a job may do at most, from now on; `none` takes a limit away."""
    given: dict[str, str | None] = {
        "max_failures": max_failures, "concurrency": concurrency, "concurrency_by": concurrency_by, "rate": rate,
        "priority": priority, "deadline": deadline, "at": at, "keep": keep,
    }  # fmt: skip
    changes = {
        name: None if value == "none" else _number(name, value) for name, value in given.items() if value
    }
    if not changes:
        raise CommandError("say what to limit: --concurrency 5, --rate 10/s, …", code=2)
    with sensible():
        _tell(job, lambda conn, by: writes.limit(conn, job, by, changes), as_json=as_json)


def _number(name: str, value: str) -> str | int:
    try:
        return int(value) if name in ("concurrency", "priority") else value
    except ValueError:
        raise CommandError(f"{name} must be a whole number, not {value!r}", code=2) from None


@app.command()
def retry(
    job: JobId,
    *,
    state: Annotated[list[str] | None, one_of(RETRIABLE, "Those that are (may be repeated)")] = None,
    item: Annotated[list[int] | None, typer.Option(min=0, help="This item (may be repeated).")] = None,
    error_type: Annotated[str | None, typer.Option(help="Those that failed by this type of error.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give items another attempt: all that failed, or those chosen.

    A job that is over is open again.
    """
    with sensible():
        choice = RetrySelection(state or None, item or None, error_type)
    count = _tell(job, lambda conn, by: retries.retry(conn, job, by, choice), as_json=as_json)
    if not as_json:
        typer.echo(f"{output.count(count, 'item')} given another attempt")


@app.command()
def actions(job: JobId, *, after: After = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List who did what to a job, the latest first."""
    with database() as conn:
        known(conn, job)
        found, following = queries.run(conn, queries.actions(job, before=after, limit=limit))
    shown = [{**action, "detail": _detail(action)} for action in found]
    columns = ("done_at", "action", "who", "via", "detail")
    listing("actions", found, following, shown, columns, as_json=as_json)


def _detail(action: dict[str, Any]) -> str:
    """In words; a traceback is for the page and for JSON. A limit that was taken away is `none`, as it is said."""
    limits = action["action"] == "limit"
    told = [
        f"{name} {_words(value)}"
        for name, value in action["detail"].items()
        if name != "traceback" and (value is not None or limits)
    ]
    return "; ".join(told)


def _words(value: Any) -> str:
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


@contextmanager
def sensible() -> Iterator[None]:
    """What makes no sense is a fault of usage."""
    try:
        yield
    except ValueError as wrong:
        raise CommandError(str(wrong), code=2) from None


def _tell(job: int, say: Callable[[Conn, Requester], T], *, as_json: bool) -> T:
    with database() as conn:
        known(conn, job)
        answer = say(conn, acting("cli"))
        now: dict[str, Any] = known(conn, job)
    if as_json:
        output.document(now)
    else:
        output.console().print(job_text.lines(now))
    return answer
