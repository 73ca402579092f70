"""Commands that look: `jobs status watch items errors callbacks workers verify`."""

from typing import Annotated, Any

import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs import follow, job_text
from callboard.commands.output import AsJson, one_of
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES, JOB_STATES, WORKER_STATES

app = typer.Typer()

JobId = Annotated[int, typer.Argument(metavar="JOB", min=0, help="The job's id.", show_default=False)]
Limit = Annotated[int, typer.Option(min=1, max=500, help="Rows at most.")]
After = Annotated[int | None, typer.Option(min=0, help="Where to go on: `next` of the page before.")]
JobState = Annotated[str | None, one_of(JOB_STATES, "Only those that are")]
ItemState = Annotated[str | None, one_of(ITEM_STATES, "Only those that are")]
WorkerState = Annotated[str | None, one_of(WORKER_STATES, "Only those that are")]


@app.command()
def jobs(
    *,
    state: JobState = None,
    actor: Annotated[str | None, typer.Option(help="Only those of this actor.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only those of this tenant.")] = None,
    name: Annotated[str | None, typer.Option(help="Only those with this in their name.")] = None,
    after: After = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    query = queries.jobs(before=after, limit=limit, state=state, tenant=tenant, actor=actor, name=name)
    with database() as conn:
        found, following = queries.run(conn, query)
    shown = [{**job, "progress": job_text.percentage(job)} for job in found]
    columns = (
        "id",
        "name",
        "state",
        "progress",
        "total",
        "succeeded",
        "failed",
        "skipped",
        "created_at",
        "stalled",
    )
    listing("jobs", found, following, shown, columns, as_json=as_json)


@app.command()
def status(job: JobId, *, as_json: AsJson = False) -> None:
    """Show where a job stands."""
    with database() as conn:
        found = known(conn, job)
    if as_json:
        output.document(found)
    else:
        output.console().print(job_text.lines(found))


@app.command()
def watch(job: JobId, *, as_json: AsJson = False) -> None:
    """Follow a job until it ends. Ctrl-C stops looking, not the job."""
    with database() as conn:
        known(conn, job)
    end = follow.follow(job, quiet=as_json)
    if as_json:
        output.document(end)


@app.command()
def items(
    job: JobId,
    *,
    state: ItemState = None,
    stage: Annotated[int | None, typer.Option(min=0, help="Of a job of stages: of this one, from 0.")] = None,
    after: After = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List a job's items."""
    with database() as conn:
        whose = _of_stage(known(conn, job), stage)
        query = queries.items(whose, state=state, after=-1 if after is None else after, limit=limit)
        found, following = queries.run(conn, query)
    shown = [
        {**item, "error": _error(item["error"]), "progress": _progress(item["progress"])} for item in found
    ]
    columns = (
        "item",
        "key",
        "actor",
        "state",
        "attempt",
        "worker",
        "step",
        "progress",
        "started_at",
        "finished_at",
        "error",
    )
    listing("items", found, following, shown, columns, as_json=as_json)


@app.command()
def errors(job: JobId, *, as_json: AsJson = False) -> None:
    """List a job's errors, grouped, each with an example."""
    with database() as conn:
        known(conn, job)
        found = queries.run(conn, queries.errors(job))
    stages = ("stage",) if any(error["stage"] is not None for error in found) else ()
    columns = (*stages, "count", "failed", "kind", "type", "place", "last_at", "item", "message")
    listing("errors", found, None, found, columns, as_json=as_json)


@app.command()
def callbacks(job: JobId, *, as_json: AsJson = False) -> None:
    """List whom a job's ends called, the latest end first, and how that went."""
    with database() as conn:
        known(conn, job)
        found = queries.run(conn, queries.callbacks(job))
    columns = ("on", "target", "state", "tries", "due_at", "error", "id")
    listing("callbacks", found, None, found, columns, as_json=as_json)


@app.command()
def workers(
    *,
    state: WorkerState = None,
    after: After = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List worker processes, the latest first."""
    with database() as conn:
        found, following = queries.run(conn, queries.workers(before=after, limit=limit, state=state))
    shown = [{**worker, "actors": ", ".join(worker["actors"])} for worker in found]
    columns = ("id", "state", "host", "pid", "threads", "held", "release", "beat_at", "trouble", "actors")
    listing("workers", found, following, shown, columns, as_json=as_json)


@app.command()
def verify(
    job: Annotated[int | None, typer.Argument(metavar="[JOB]", min=0, help="Only this job.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Recount from the items; exit 1 on any drift. It is exact while workers run."""
    with database() as conn:
        if job is not None:
            known(conn, job)
        verdict = queries.run(conn, queries.verify(job))
    if as_json:
        output.document(verdict)
    elif verdict["drift"]:
        output.table(verdict["drift"], ("job", "name", "check", "stored", "counted"))
    else:
        typer.echo(f"no drift: {output.count(verdict['jobs'], 'job')}, {len(verdict['checks'])} checks each")
    raise typer.Exit(1 if verdict["drift"] else 0)


def known(conn: Conn, job: int) -> dict[str, Any]:
    """The job as the API describes it, or the error that there is none."""
    found = queries.run(conn, queries.job(job))
    if found is None:
        raise CommandError(f"there is no job {job} in this database: `callboard jobs` lists those there are")
    return found


def _of_stage(job: dict[str, Any], stage: int | None) -> int:
    """Whose items they are."""
    if stage is None and not job["stages"]:
        return int(job["id"])
    found = next((one for one in job["stages"] if one["stage"] == stage), None)
    if found is None:
        there = ", ".join(f"{one['stage']} ({one['name']})" for one in job["stages"])
        raise CommandError(
            f"job {job['id']} has {f'stages: say --stage {there}' if there else 'no stages'}", code=2
        )
    return int(found["job"])


def _error(error: dict[str, Any] | None) -> str:
    return f"{error['type']}: {error['message']}" if error else ""


def _progress(progress: dict[str, Any] | None) -> str:
    if progress is None:
        return ""
    done, total = progress["done"], progress["total"]
    return f"{done:,}" if total is None else f"{done:,} of {total:,}"


def listing(
    name: str,
    found: list[Any],
    following: int | None,
    shown: list[Any],
    columns: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Print a page: `found` as JSON, or `shown` as a table with where it goes on."""
    if as_json:
        output.document({name: found, "next": following})
    elif not shown:
        typer.echo(f"no {name}")
    else:
        output.table(shown, columns)
        if following is not None:
            typer.echo(f"more: --after {following}")
