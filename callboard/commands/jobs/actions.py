"""Commands that change a job: `cancel pause resume seal limit retry run-again`."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from callboard import words
from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs.show import JobId, find_job, print_job
from callboard.commands.output import AsJson, one_of
from callboard.job import acting, would_cancel, would_retry
from callboard.sql.pool import Conn
from callboard.sql.states import FINAL, RETRIABLE
from callboard.sql.writes import actions as writes
from callboard.sql.writes import retry_action
from callboard.sql.writes.requests import Requester
from callboard.sql.writes.retry_action import RetrySelection
from callboard.sql.writes.run_again import Again
from callboard.sql.writes.run_again import run_again as run_again_

app = typer.Typer()

T = TypeVar("T")


def json_object(value: str) -> dict[str, Any]:
    """Parse the JSON object of an option."""
    try:
        return msgspec.json.decode(value, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise typer.BadParameter(f"must be a JSON object: {error}") from None


DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing, and print how many items would change.")]
CONCURRENCY = "Maximum number of items of the job in RabbitMQ or running, over all workers."
MaxFailures = Annotated[
    str | None, typer.Option(metavar="N|N%", help="Stop it when more items than this failed: 10, 5%, '5% of 1000'.")
]
LANES = "With --concurrency-by: maximum number of values in RabbitMQ or running at once."
ConcurrencyBy = Annotated[
    str | None,
    typer.Option(metavar="FIELD=N", help="The same limit for each value of an argument: customer_id=5, or 0=5."),
]
Rate = Annotated[
    str | None, typer.Option(metavar="N/s|m|h", help="Maximum number of items that start per s, m or h: 10/s.")
]
Deadline = Annotated[
    str | None,
    typer.Option(metavar="TIME|SPAN", help="Cancel items that have not started by then: 2h, 2027-01-31T12:00:00Z."),
]
Delay = Annotated[str | None, typer.Option(metavar="SPAN", help="Start no item for this time span: 90s, 5m, 2h, 1d.")]
At = Annotated[str | None, typer.Option(metavar="TIME|SPAN", help="Start no item before: 5m, or 2027-01-31T12:00:00Z.")]
Keep = Annotated[str | None, typer.Option(metavar="SPAN", help="How long it is kept after its end: 30d, or forever.")]


@app.command()
def cancel(
    job: JobId,
    *,
    reason: Annotated[str | None, typer.Option(help="The reason, which the job shows.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Start no more items of a job. It is cancelled when its running items have ended."""
    if dry_run:
        _try(job, lambda conn, by: would_cancel(conn, job, by), "would never start", as_json=as_json)
        return
    _act(job, lambda conn, by: writes.cancel(conn, job, by, reason=reason), as_json=as_json)


@app.command()
def pause(job: JobId, *, as_json: AsJson = False) -> None:
    """Start no more items of a job until it is resumed."""
    _act(job, lambda conn, by: writes.pause(conn, job, by), as_json=as_json)


@app.command()
def resume(job: JobId, *, as_json: AsJson = False) -> None:
    """Continue a paused job."""
    _act(job, lambda conn, by: writes.resume(conn, job, by), as_json=as_json)


@app.command()
def seal(job: JobId, *, as_json: AsJson = False) -> None:
    """Make a job that is open, or whose submission was interrupted, take no more items from outside."""
    _act(job, lambda conn, by: writes.seal(conn, job, by), as_json=as_json)


@app.command()
def limit(
    job: JobId,
    *,
    max_failures: MaxFailures = None,
    concurrency: Annotated[str | None, typer.Option(metavar="N", help=CONCURRENCY)] = None,
    concurrency_by: ConcurrencyBy = None,
    lanes: Annotated[str | None, typer.Option(metavar="N", help=LANES)] = None,
    rate: Rate = None,
    priority: Annotated[str | None, typer.Option(metavar="N", help="Jobs with a lower number run first.")] = None,
    deadline: Deadline = None,
    at: At = None,
    keep: Keep = None,
    as_json: AsJson = False,
) -> None:
    """Change the limits of a job: `callboard limit 17 --rate 10/s`. `none` removes a limit."""
    given: dict[str, str | None] = {
        "max_failures": max_failures, "concurrency": concurrency, "concurrency_by": concurrency_by, "lanes": lanes,
        "rate": rate, "priority": priority, "deadline": deadline, "at": at, "keep": keep,
    }  # fmt: skip
    changes = {name: None if value == "none" else _number(name, value) for name, value in given.items() if value}
    if not changes:
        raise CommandError("give a limit to change: --concurrency 5, --rate 10/s, …", code=2)
    _act(job, lambda conn, by: writes.limit(conn, job, by, changes), as_json=as_json)


def _number(name: str, value: str) -> str | int:
    try:
        return int(value) if name in ("concurrency", "lanes", "priority") else value
    except ValueError:
        raise CommandError(f"{name} must be a whole number, not {value!r}", code=2) from None


@app.command()
def retry(
    job: JobId,
    *,
    state: Annotated[list[str] | None, one_of(RETRIABLE, "Items in this state (may be repeated)")] = None,
    item: Annotated[list[int] | None, typer.Option(min=0, help="This item (may be repeated).")] = None,
    error: Annotated[str | None, typer.Option(help="Items that failed with it: a type, or the id of a group.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Give items another attempt: all failed items, or the selected ones. A finished job runs again."""

    def act(conn: Conn, by: Requester) -> int:
        selection = RetrySelection(state or None, item or None, error)
        return (would_retry if dry_run else retry_action.retry)(conn, job, by, selection)

    if dry_run:
        _try(job, act, "would get another attempt", as_json=as_json)
        return
    count = _act(job, act, as_json=as_json)
    if not as_json:
        typer.echo(f"{words.count(count, 'item')} will get another attempt")


@app.command()
def run_again(
    job: JobId,
    *,
    state: Annotated[list[str] | None, one_of(FINAL, "Items in this state (may be repeated)")] = None,
    name: Annotated[str | None, typer.Option(help="The new job's name; default: the old one's.")] = None,
    key: Annotated[str | None, typer.Option(help="The same key gives the same new job.")] = None,
    metadata: Annotated[
        Any, typer.Option(parser=json_object, metavar="JSON", help="An object to store with the new job.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new job of the items of a finished job: all, or those in some states. Prints the new job's id.

    It has the old job's limits, except the deadline and the start time. `callboard limit` changes them while it runs.
    To start it with other limits, call `job.run_again(rate=…)` in Python, or POST /api/jobs/JOB/run-again.
    """
    with database() as conn:
        find_job(conn, job)
        try:
            again = Again(state or None, name, key, metadata)
            number, _ = run_again_(lambda statement: statement(conn), job, acting("cli"), again)
        except ValueError as error:
            raise CommandError(str(error), code=2) from None
        if as_json:
            output.document(find_job(conn, number))
        else:
            typer.echo(number)


def _try(job: int, count: Callable[[Conn, Requester], int], what: str, *, as_json: bool) -> None:
    """Print how many items an action would change, and change nothing."""
    with database() as conn:
        find_job(conn, job)
        items = _checked(conn, count)
    if as_json:
        output.document({"items": items})
    else:
        typer.echo(f"{words.count(items, 'item')} {what}")


def _act(job: int, write: Callable[[Conn, Requester], T], *, as_json: bool) -> T:
    """Run an action on a job, then print the job. Raises CommandError, code 2, for an invalid value."""
    with database() as conn:
        find_job(conn, job)
        answer = _checked(conn, write)
        print_job(find_job(conn, job), as_json=as_json)
    return answer


def _checked(conn: Conn, write: Callable[[Conn, Requester], T]) -> T:
    try:
        return write(conn, acting("cli"))
    except ValueError as error:
        raise CommandError(str(error), code=2) from None
