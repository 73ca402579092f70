"""Commands that show: `jobs status watch items export errors workers verify`."""

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs import follow, job_text
from callboard.commands.jobs.input_file import FORMATS
from callboard.commands.output import AsJson, one_of
from callboard.middleware.submission.item_encoding import key_texts
from callboard.sql.pool import Conn
from callboard.sql.reads import exports, job_filter, queries
from callboard.sql.reads.job_filter import JOB_OPEN, JobFilter
from callboard.sql.states import ITEM_STATES, WORKER_STATES
from callboard.words import amount, count, left, percent, rate, shown_state

app = typer.Typer()

#: The jobs that `watch` follows by default, and their maximum number.
OPEN, MOST_WATCHED = JobFilter(states=JOB_OPEN, standing=False), 50

Row = dict[str, Any]
Page = tuple[list[Row], int | None]

LATEST = "@latest"


def job_id(text: str | int) -> int:
    """Return the id of a job, given as id or `@latest`. Raises CommandError if there is no job yet."""
    if text == LATEST:
        with database() as conn:
            page, _ = queries.run(conn, queries.jobs(JobFilter(standing=False), limit=1))
        if not page:
            raise CommandError("there is no job yet: `callboard submit --help` says how to make one")
        return int(page[0]["id"])
    if not re.fullmatch(r"[0-9]{1,19}", str(text)) or int(text) > queries.MAX_ID:
        raise typer.BadParameter(f"must be the id of a job, or {LATEST}, not {text!r}")
    return int(text)


JobId = Annotated[
    int,
    typer.Argument(metavar="JOB", parser=job_id, help=f"The job's id, or {LATEST}: the newest.", show_default=False),
]
Limit = Annotated[int, typer.Option(min=1, max=500, help="Maximum number of rows.")]
After = Annotated[int | None, typer.Option(min=0, help="Continue after this: `next` of the previous page.")]
ItemError = Annotated[
    str | None, typer.Option(help="Only items that failed with this error: its type, or the id of a group.")
]
State = Annotated[str | None, one_of(ITEM_STATES, "Only items in this state")]
WorkerState = Annotated[str | None, one_of(WORKER_STATES, "Only workers in this state")]


#: The columns of lists, and how they fit into a terminal.
SHOWN = "id name state bar progress total failed rate left age stalled"
FIT = output.Fit({"name": 12, "stalled": 8}, ("bar", "age", "rate", "left", "stalled"))
ITEM_SHOWN = "item key actor state attempt worker step progress started_at finished_at error"
ITEM_FIT = output.Fit(
    {"key": 8, "actor": 10, "step": 8, "error": 20},
    ("finished_at", "started_at", "worker", "attempt", "actor", "progress", "step", "key", "error"),
)
ERROR_SHOWN = "stage id failed retried kind type place last_at item message"
ERROR_FIT = output.Fit(
    {"type": 10, "place": 10, "message": 16}, ("stage", "last_at", "place", "kind", "item", "retried")
)
WORKER_SHOWN = "id state host pid threads held beat release trouble actors"
WORKER_FIT = output.Fit(
    {"host": 8, "release": 8, "trouble": 12, "actors": 8}, ("release", "threads", "pid", "beat", "trouble")
)
#: The columns that `jobs` can show.
COLUMNS = (
    *SHOWN.split(), "key", "tenant", "actor", *(one for one in ITEM_STATES if one != "failed"), "retries",
    "crashes", "step", "reason", "created_by", "created_at", "started_at", "finished_at", "updated_at",
)  # fmt: skip


def _columns(text: str) -> str:
    """Check a list of columns, separated by commas."""
    names = [name.strip() for name in text.replace(" ", ",").split(",")]
    for name in names:
        if name not in COLUMNS:
            raise typer.BadParameter(f"{name!r} is not a column; known are {', '.join(COLUMNS)}")
    return " ".join(names)


@app.command()
def jobs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD…", help=f"Only jobs that match all of these: {job_filter.WORDS}."),
    ] = None,
    *,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Update the list until Ctrl-C.")] = False,
    columns: Annotated[
        str, typer.Option(parser=_columns, metavar="NAME,…", help=f"Columns to show, of: {', '.join(COLUMNS)}.")
    ] = SHOWN,
    after: After = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first: `callboard jobs state:failed since:24h metadata.customer:17 ads`."""
    wanted = read_words(words or ())

    def read(conn: Conn) -> Page:
        page: Page = ([], after)
        while True:  # pages of a rare match may be empty
            page = queries.run(conn, queries.jobs(wanted, before=page[1], limit=limit))
            if page[0] or page[1] is None:
                return page

    fit = FIT if columns == SHOWN else None
    if watch:
        if as_json:
            raise CommandError("--watch shows a table; `callboard watch --json` follows jobs to their end", code=2)
        follow.follow_list(lambda conn: output.grid([*map(_cells_of_job, read(conn)[0])], columns.split(), fit))
        return
    with database() as conn:
        page = read(conn)
    print_page("jobs", page, columns, as_json=as_json, cells=_cells_of_job, fit=fit)


def _cells_of_job(job: Row) -> Row:
    pace = rate(job["rate"]) if job["rate"] and job["state"] == "running" else ""
    shown = {
        "state": shown_state(job), "bar": job_text.cells(job).plain, "progress": percent(job["progress"]), "rate": pace,
    }  # fmt: skip
    return {**job, **shown, "left": left(job), "age": job_text.age(job["created_at"])}


def _cells_of_worker(worker: Row) -> Row:
    beat = f"{job_text.age(worker['beat_at'])} ago"
    return {**worker, "beat": beat, "actors": ", ".join(worker["actors"])}


def read_words(words: Iterable[str]) -> JobFilter:
    """Parse search words, from which the shell has removed the quotes. Raises CommandError, code 2."""
    try:
        return job_filter.parse_arguments(words)
    except ValueError as error:
        raise CommandError(str(error), code=2) from None


@app.command()
def status(job: JobId, *, as_json: AsJson = False) -> None:
    """Show a job: its state, its items by state, its rate, its errors, and why it is stalled."""
    with database() as conn:
        found = find_job(conn, job)
        print_job(found, as_json=as_json)
        if not as_json:
            output.console().print(*follow.details(conn, found), job_text.next_words(found), sep="\n")


@app.command()
def watch(
    jobs: Annotated[
        list[int] | None,
        typer.Argument(
            metavar="JOB", parser=job_id, show_default=False,
            help=f"Ids, or {LATEST}. Default: all open jobs, one line each.",
        ),
    ] = None,
    *,
    timeout: Annotated[float | None, typer.Option(min=0, help="Stop after these seconds, with exit code 1.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Follow jobs until they end: `callboard watch @latest`. Exit 0 only if every item succeeded or was skipped.

    Ctrl-C ends this command, not the jobs.
    """
    with database() as conn:
        for job in jobs or ():
            find_job(conn, job)
        numbers = jobs or [job["id"] for job in queries.run(conn, queries.jobs(OPEN, limit=MOST_WATCHED))[0]]
    if not numbers:
        raise CommandError("no job is open: `callboard jobs` lists all")
    ends = follow.follow(numbers, quiet=as_json, timeout=timeout)
    if as_json:
        output.document(ends[0] if jobs and len(jobs) == 1 else {"jobs": ends})
    raise typer.Exit(follow.exit_code(ends))


@app.command()
def items(
    job: JobId,
    *,
    state: State = None,
    error: ItemError = None,
    key: Annotated[str | None, typer.Option(help="Only the item with this key.")] = None,
    after: After = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List a job's items: arguments, state, attempt, error. For a job of stages, give the id of a stage."""
    with database() as conn:
        if stages := find_job(conn, job)["stages"]:
            there = ", ".join(f"{one['job']} ({one['name']})" for one in stages)
            raise CommandError(f"job {job} has stages with their own items: list those of job {there}", code=2)
        page: Page = ([], -1 if after is None else after)
        while not page[0] and page[1] is not None:  # pages of a rare state may be empty
            query = queries.items(job, state=state, error=error, keys=key_texts(key), after=page[1], limit=limit)
            page = queries.run(conn, query)
    print_page(
        "items", page, ITEM_SHOWN, as_json=as_json, fit=ITEM_FIT,
        cells=lambda item: {**item, "error": _error(item["error"]), "progress": _progress(item["progress"])},
    )  # fmt: skip


@app.command()
def export(
    job: JobId,
    *,
    form: Annotated[str, one_of(FORMATS, "The format; each line is an item", "--format", metavar="FORMAT")] = "jsonl",
    state: State = None,
    error: ItemError = None,
) -> None:
    """Print all items of a job with arguments, results and errors, one a line: `callboard export 17 > items.jsonl`."""
    write = exports.csv_lines if form == "csv" else exports.json_lines
    with database() as conn:
        stages = [int(one["job"]) for one in find_job(conn, job)["stages"]]
        if form == "csv":
            output.write(exports.csv_header())
        for number in stages or [job]:
            after: int | None = -1
            while after is not None:
                query = queries.items(number, state=state, error=error, after=after, limit=exports.PAGE_ITEMS)
                page, after = queries.run(conn, query)
                output.write(write([_whole(conn, item) for item in page]))


@app.command()
def errors(
    job: JobId,
    error: Annotated[str | None, typer.Argument(metavar="ID", help="Show this group, with a traceback.")] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List a job's error groups: each has one kind, type, place and message pattern, and an example."""
    with database() as conn:
        find_job(conn, job)
        if error is not None:
            print_error(conn, job, error, as_json=as_json)
            return
        found = queries.run(conn, queries.errors(job))
    columns = ERROR_SHOWN if any(error["stage"] is not None for error in found) else ERROR_SHOWN.removeprefix("stage ")
    print_page("errors", (found, None), columns, as_json=as_json, fit=ERROR_FIT)


@app.command()
def workers(*, state: WorkerState = None, after: After = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List worker processes, the latest first."""
    with database() as conn:
        page = queries.run(conn, queries.workers(before=after, limit=limit, state=state))
    print_page("workers", page, WORKER_SHOWN, as_json=as_json, cells=_cells_of_worker, fit=WORKER_FIT)


@app.command()
def verify(
    job: Annotated[
        int | None,
        typer.Argument(metavar="JOB", parser=job_id, help=f"Only this job, or {LATEST}.", show_default=False),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Recount jobs from their items and compare; exit 1 if any number differs. Exact even while workers run."""
    with database() as conn:
        if job is not None:
            find_job(conn, job)
        verdict = queries.run(conn, queries.verify(job))
    if as_json:
        output.document(verdict)
    elif verdict["drift"]:
        output.table(verdict["drift"], ("job", "name", "check", "stored", "counted"))
    else:
        typer.echo(f"no drift: {count(verdict['jobs'], 'job')}, {len(verdict['checks'])} checks each")
    raise typer.Exit(1 if verdict["drift"] else 0)


def _whole(conn: Conn, item: Row) -> Row:
    query = exports.rest(item)
    found = None if query is None else queries.run(conn, query)
    return found or item


def find_job(conn: Conn, job: int) -> Row:
    """Return the job as the API describes it. Raises CommandError if there is no job with this id."""
    found = queries.run(conn, queries.job(job))
    if found is None:
        raise CommandError(f"there is no job {job} in this database: `callboard jobs` lists the jobs")
    return found


def print_job(job: Row, *, as_json: bool) -> None:
    """Print a job as one JSON document or as lines."""
    if as_json:
        output.document(job)
    else:
        output.console().print(job_text.lines(job))


def print_page(
    name: str, page: Page, columns: str, *, as_json: bool, cells: Callable[[Row], Row] = lambda row: row,
    fit: output.Fit | None = None,
) -> None:  # fmt: skip
    """Print a page as one JSON document, or the `columns` of its rows as a table; `cells` makes a row printable."""
    rows, following = page
    if as_json:
        output.document({name: rows, "next": following})
    elif rows:
        output.table([*map(cells, rows)], columns.split(), fit)
        if following is not None:
            typer.echo(f"more: --after {following}")
    else:
        typer.echo(f"no {name}")


def print_error(conn: Conn, job: int, group: str, *, as_json: bool) -> None:
    """Print an error group, with the traceback of its example. Raises CommandError if the job has no such group."""
    found = queries.run(conn, queries.error(job, group))
    if found is None:
        raise CommandError(f"job {job} has no error group {group!r}: `callboard errors {job}` lists its groups")
    if as_json:
        output.document(found)
    else:
        output.table([found], ("failed", "retried", "kind", "type", "place", "last_at", "item", "message"))
        output.lines(found["traceback"] or "")


def _error(error: Row | None) -> str:
    """Return an error as Python prints it, without the module of its type, to save room."""
    return f"{error['type'].rpartition('.')[2]}: {error['message']}" if error else ""


def _progress(progress: Row | None) -> str:
    if progress is None:
        return ""
    done, total = progress["done"], progress["total"]
    return amount(done) if total is None else f"{amount(done)} of {amount(total)}"
