"""`callboard purge`: delete finished jobs, at once and to the last row."""

from collections.abc import Sequence
from typing import Annotated

import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs import show
from callboard.commands.output import AsJson
from callboard.job import acting
from callboard.sql import settings
from callboard.sql.pool import Conn
from callboard.sql.writes import actions
from callboard.sql.writes import retention as deletion

app = typer.Typer()

Jobs = Annotated[list[int] | None, typer.Argument(metavar="[JOB…]", min=0, help="These finished jobs.")]
OlderThan = Annotated[
    str | None,
    typer.Option(
        metavar="SPAN", help="Those that ended so long ago and don't say themselves how long they stay: 7d."
    ),
]


@app.command()
def purge(jobs: Jobs = None, *, older_than: OlderThan = None, as_json: AsJson = False) -> None:
    """Delete finished jobs with all of their rows: those named, or all whose time is over.

    It may be stopped at any time: what is left is invisible, and deleted by the next one, or by the sweep.
    """
    if jobs and older_than:
        raise CommandError("say which jobs, or how old, not both", code=2)
    try:
        keep = settings.keep_span("--older-than", older_than) if older_than else settings.KEEP.get()
    except ValueError as wrong:
        raise CommandError(str(wrong), code=2) from None
    with database() as conn:
        going = _named(conn, jobs) if jobs else _due(conn, keep)
        items = sum(sum(deletion.clear(conn, job)) for job in going)
        deletion.forget(conn, settings.KEEP.get())
    if as_json:
        output.document({"jobs": len(going), "items": items})
    else:
        typer.echo(f"deleted {output.count(len(going), 'job')} with {output.count(items, 'item')}")


def _named(conn: Conn, jobs: Sequence[int]) -> list[int]:
    """All of them or none; one that is leaving already is gone on with."""
    already = set(deletion.jobs(conn))
    going = sorted(set(jobs))
    with conn.transaction():
        for job in going:
            if job not in already:
                show.known(conn, job)
                actions.delete(conn, job, acting("cli"))
    return going


def _due(conn: Conn, keep: float | None) -> list[int]:
    while deletion.mark_due(conn, keep):
        pass
    return deletion.jobs(conn)
