"""`callboard purge`: delete finished jobs at once, with all of their rows."""

from collections.abc import Sequence
from typing import Annotated

import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs.show import LATEST, find_job, job_id
from callboard.commands.output import AsJson
from callboard.job import acting
from callboard.sql import settings
from callboard.sql.pool import Conn
from callboard.sql.writes import actions, retention
from callboard.sql.writes.requests import action_transaction
from callboard.words import count

app = typer.Typer()

Jobs = Annotated[
    list[int] | None,
    typer.Argument(
        metavar="JOB…", parser=job_id, help=f"These finished jobs; {LATEST}: the newest.", show_default=False
    ),
]

#: Seconds for which it waits for a locked row: the sweep may be deleting the same job.
LOCK_WAIT_SECONDS = 10.0


@app.command()
def purge(jobs: Jobs = None, *, as_json: AsJson = False) -> None:
    """Delete finished jobs and all of their rows: the given ones, or all expired ones (CALLBOARD_KEEP).

    It may be stopped at any time: the jobs are already marked as deleted, and the sweep deletes the remaining rows.
    """
    keep = settings.KEEP.get()
    with database() as conn:
        whole = retention.with_stages(conn, _mark_named(conn, jobs) if jobs else _mark_due(conn, keep))
        items, refused = _delete(conn, list(whole))
        retention.delete_old_rows(conn, keep)
    gone = sum(whole[job] for job in whole.keys() - refused.keys())
    if as_json:
        output.document({"jobs": gone, "items": items})
    else:
        typer.echo(f"deleted {count(gone, 'job')} with {count(items, 'item')}")
    if refused:
        raise CommandError("; ".join(f"job {job}: {reason}" for job, reason in refused.items()))


def _delete(conn: Conn, jobs: Sequence[int]) -> tuple[int, dict[int, str]]:
    """Delete the rows of deleted jobs; return the number of items, and the reasons by job that could not be deleted."""
    items, locked = 0, {}
    for job in jobs:
        try:
            for deleted in retention.delete_rows(conn, job, LOCK_WAIT_SECONDS):
                items += deleted
        except TimeoutError as error:
            locked[job] = f"it can't be deleted yet: {error}"
    return items, retention.jobs_set_aside(conn, jobs) | locked


def _mark_named(conn: Conn, jobs: Sequence[int]) -> list[int]:
    """Mark all of these jobs for deletion or none; return them, sorted. A job may already be marked.

    Raises CommandError for an unknown job, and NotPossible for an open one.
    """
    already = set(retention.deleted_jobs(conn, aside=True))
    named = sorted(set(jobs))
    with action_transaction(conn):
        for job in named:
            if job not in already:
                find_job(conn, job)
                actions.delete(conn, job, acting("cli"))
    return named


def _mark_due(conn: Conn, seconds: float | None) -> list[int]:
    """Mark every job that ended `seconds` ago; None: only jobs whose own `keep` is over. Return all marked jobs."""
    while retention.mark_expired(conn, seconds):
        pass
    return retention.deleted_jobs(conn, aside=True)
