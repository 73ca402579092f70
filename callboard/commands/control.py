"""Commands that say something to a job: `cancel pause resume retry actions`."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from callboard.commands import job_lines, output
from callboard.commands.address import database
from callboard.commands.faults import Fault
from callboard.commands.look import After, JobId, Limit, known, listing
from callboard.commands.output import AsJson, one_of
from callboard.middleware.job import acting
from callboard.sql import controls, reads
from callboard.sql.controls import By, Choice
from callboard.sql.pool import Conn
from callboard.sql.states import RETRIABLE

app = typer.Typer()

T = TypeVar("T")


@app.command()
def cancel(
    job: JobId,
    *,
    reason: Annotated[str | None, typer.Option(help="Why; it is shown with the job.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start nothing more of a job; it is cancelled when what is in hand has ended."""
    _tell(job, lambda conn, by: controls.cancel(conn, job, by, reason=reason), as_json=as_json)


@app.command()
def pause(job: JobId, *, as_json: AsJson = False) -> None:
    """Start nothing more of a job until it is resumed."""
    _tell(job, lambda conn, by: controls.pause(conn, job, by), as_json=as_json)


@app.command()
def resume(job: JobId, *, as_json: AsJson = False) -> None:
    """Go on with a paused job."""
    _tell(job, lambda conn, by: controls.resume(conn, job, by), as_json=as_json)


@app.command()
def retry(
    job: JobId,
    *,
    state: Annotated[list[str] | None, one_of(RETRIABLE, "Those that are (may be repeated)")] = None,
    item: Annotated[list[int] | None, typer.Option(min=0, help="This item (may be repeated).")] = None,
    error: Annotated[str | None, typer.Option(help="Those that failed by this type of error.")] = None,
    as_json: AsJson = False,
) -> None:
    """Give items that ended without success another attempt: all that failed, or those chosen. A job that is over is
    open again.
    """
    try:
        choice = Choice(state or None, item or None, error)
    except ValueError as wrong:
        raise Fault(str(wrong), code=2) from None
    count = _tell(job, lambda conn, by: controls.retry(conn, job, by, choice), as_json=as_json)
    if not as_json:
        typer.echo(f"{count} item{'' if count == 1 else 's'} given another attempt")


@app.command()
def actions(job: JobId, *, after: After = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List who did what to a job, the latest first."""
    with database() as conn:
        known(conn, job)
        found, following = reads.run(conn, reads.actions(job, before=after, limit=limit))
    columns = ("done_at", "action", "who", "via", "detail")
    listing("actions", found, following, found, columns, as_json=as_json)


def _tell(job: int, say: Callable[[Conn, By], T], *, as_json: bool) -> T:
    with database() as conn:
        known(conn, job)
        answer = say(conn, acting("cli"))
        now: dict[str, Any] = known(conn, job)
    if as_json:
        output.document(now)
    else:
        output.console().print(job_lines.lines(now))
    return answer
