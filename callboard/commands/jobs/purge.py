"""`callboard purge`: delete finished jobs at once, with all of their rows."""

from collections.abc import Sequence
from typing import Annotated

import psycopg
import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs.show import find_job
from callboard.commands.output import AsJson
from callboard.job import acting
from callboard.sql import settings
from callboard.sql.pool import Conn, transaction
from callboard.sql.rows import WouldDelete
from callboard.sql.writes import actions, retention
from callboard.words import count

app = typer.Typer()

DryRun = Annotated[bool, typer.Option("--dry-run", help="Delete nothing: say what would go, and why.")]
Jobs = Annotated[list[int] | None, typer.Argument(metavar="JOB…", min=0, help="These finished jobs.")]
OlderThan = Annotated[
    str | None, typer.Option(metavar="SPAN", help="Jobs that ended this long ago and have no `keep` of their own: 7d.")
]

#: Seconds that it waits for a row which another transaction has locked: the sweep may be deleting the same job.
LOCK_WAIT_SECONDS = 10.0
#: Why jobs leave, by the rule.
WHY = {
    "named": "named", "time": "ended longer ago than {}", "keep": "their own keep is over",
    "deleted": "deleted before, and not all of their rows are gone",
}  # fmt: skip


@app.command()
def purge(jobs: Jobs = None, *, older_than: OlderThan = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Delete finished jobs and all of their rows: those named, or all whose time is over (CALLBOARD_KEEP).

    It may be stopped at any time: the jobs are gone already, and the sweep deletes the rest of their rows.
    """
    if jobs and older_than:
        raise CommandError("give jobs or --older-than, not both", code=2)
    kept_seconds = settings.KEEP.get()
    try:
        seconds = settings.keep_span("--older-than", older_than) if older_than else kept_seconds
    except ValueError as error:
        raise CommandError(str(error), code=2) from None
    with database() as conn:
        if dry_run:
            if jobs:
                _check_named(conn, jobs)
            kept = older_than or settings.KEEP.text or settings.KEEP.default
            by = "--older-than" if older_than else settings.KEEP.name
            _show(retention.would_delete(conn, seconds, jobs), f"{kept} ({by})", as_json=as_json)
            return
        whole = retention.with_stages(conn, _mark_named(conn, jobs) if jobs else _mark_due(conn, seconds))
        items, refused = _delete(conn, list(whole))
        retention.delete_old_rows(conn, kept_seconds)
    gone = sum(whole[job] for job in whole.keys() - refused.keys())
    if as_json:
        output.document({"jobs": gone, "items": items})
    else:
        typer.echo(f"deleted {count(gone, 'job')} with {count(items, 'item')}")
    if refused:
        raise CommandError("; ".join(f"job {job}: {reason}" for job, reason in refused.items()))


def _delete(conn: Conn, jobs: Sequence[int]) -> tuple[int, dict[int, str]]:
    """Delete the rows of deleted jobs; return the number of items, and why jobs are there yet."""
    items, locked = 0, {}
    for job in jobs:
        try:
            for deleted in retention.delete_rows(conn, job, LOCK_WAIT_SECONDS):
                items += deleted
        except TimeoutError as error:
            locked[job] = f"it can't be deleted yet: {error}"
    return items, retention.jobs_set_aside(conn, jobs) | locked


def _show(found: Sequence[WouldDelete], kept: str, *, as_json: bool) -> None:
    """Print what a purge would delete. `kept`: for how long jobs are kept, and who says so."""
    jobs, items = sum(rule.jobs for rule in found), sum(rule.items for rule in found)
    if as_json:
        output.document({"jobs": jobs, "items": items, "rules": [rule._asdict() for rule in found]})
        return
    typer.echo(f"would delete {count(jobs, 'job')} with {count(items, 'item')}")
    for rule in found:
        size = "" if rule.size is None else f", about {rule.size / 2**20:,.1f} MiB"
        what = f"{count(rule.jobs, 'job')}, {count(rule.items, 'item')}{size}"
        typer.echo(f"  {WHY[rule.rule].format(kept)}: {what}")


def _mark_named(conn: Conn, jobs: Sequence[int]) -> list[int]:
    """Mark all of these jobs for deletion or none; return them, sorted. A job may be marked already.

    Raises CommandError for an unknown job, and NotPossible for one that is open.
    """
    already = set(retention.deleted_jobs(conn, aside=True))
    named = sorted(set(jobs))
    with transaction(conn):
        for job in named:
            if job not in already:
                find_job(conn, job)
                actions.delete(conn, job, acting("cli"))
    return named


def _check_named(conn: Conn, jobs: Sequence[int]) -> None:
    """Raise what `_mark_named` raises, and mark none."""
    with transaction(conn):
        _mark_named(conn, jobs)
        raise psycopg.Rollback


def _mark_due(conn: Conn, seconds: float | None) -> list[int]:
    """Mark every job that ended `seconds` ago; None: only those whose own `keep` is over. Return all that leave."""
    while retention.mark_expired(conn, seconds):
        pass
    return retention.deleted_jobs(conn, aside=True)
