"""Follows jobs to their ends: live on a terminal that can redraw lines, elsewhere with a line for each change."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import psycopg
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from callboard.commands import output
from callboard.commands.errors import CommandError
from callboard.commands.jobs import job_text
from callboard.sql.pool import Conn, connect, database_address, running_here
from callboard.sql.reads import queries
from callboard.sql.states import JOB_FINAL

#: Seconds between two reads of the jobs; and, without live display, between two lines of a job.
READ_SECONDS, LINE_SECONDS = 0.5, 10.0
#: Running items that are read to find the longest ones.
HELD_ITEMS = 100
LOST = Text("connection to the database lost; reconnecting", style="yellow")

Job = dict[str, Any]


def follow(numbers: Sequence[int], *, quiet: bool = False, timeout: float | None = None) -> list[Job]:
    """Show jobs until all have ended; return the finished jobs. Shows a lost connection, and reconnects.

    `quiet`: show nothing. Raises CommandError if a job is deleted meanwhile, after `timeout` seconds, and at Ctrl-C.
    """
    end = None if timeout is None else time.monotonic() + timeout
    try:
        with _shower(output.console(), quiet=quiet) as show:
            while True:
                with suppress(psycopg.OperationalError), connect(database_address()) as conn:
                    return _follow(conn, numbers, show, end)
                show(None, None)
                _pause(end)
    except TimeoutError:
        raise CommandError(f"after {timeout:g} s {_continuing(numbers)}") from None
    except KeyboardInterrupt:
        raise CommandError(_continuing(numbers)) from None


def exit_code(jobs: Sequence[Job]) -> int:
    """Return 0 if these jobs are completed and all of their items succeeded or were skipped, else 1."""
    well = (job["state"] == "completed" and job["succeeded"] + job["skipped"] == job["total"] for job in jobs)
    return 0 if all(well) else 1


def follow_list(read: Callable[[Conn], RenderableType]) -> None:
    """Show a list with live updates until Ctrl-C; if it can't be redrawn, print it every ten seconds."""
    console = output.console()
    with suppress(KeyboardInterrupt):
        if not console.is_interactive:
            _repeat(read, console.print, LINE_SECONDS)
        with Live(console=console, auto_refresh=False) as live:
            _repeat(read, lambda shown: live.update(shown, refresh=True), READ_SECONDS)


def _repeat(read: Callable[[Conn], RenderableType], show: Callable[[RenderableType], None], seconds: float) -> NoReturn:
    while True:
        with suppress(psycopg.OperationalError), connect(database_address()) as conn:
            while True:
                show(read(conn))
                time.sleep(seconds)
        show(LOST)
        time.sleep(seconds)


def _follow(
    conn: Conn, numbers: Sequence[int], show: Callable[[list[Job] | None, Conn | None], None], end: float | None
) -> list[Job]:
    while True:
        found = queries.run(conn, queries.jobs_by_id(numbers))
        for number in numbers:
            if number not in found:
                raise CommandError(f"job {number} was deleted meanwhile")
        jobs = [found[number] for number in numbers]
        show(jobs, conn)
        if all(job["state"] in JOB_FINAL for job in jobs):
            return jobs
        _pause(end)


def _pause(end: float | None) -> None:
    """Wait until the next read. Raises TimeoutError."""
    if end is not None and time.monotonic() >= end:
        raise TimeoutError
    time.sleep(READ_SECONDS if end is None else max(min(READ_SECONDS, end - time.monotonic()), 0.0))


def _continuing(numbers: Sequence[int]) -> str:
    """Return the text about the jobs that continue, and where to see them."""
    ids = " ".join(map(str, numbers))
    jobs = f"job {ids} continues" if len(numbers) == 1 else f"jobs {ids} continue"
    again = f"`callboard watch {ids}` follows {'it' if len(numbers) == 1 else 'them'} again"
    page = running_here().get("web_url")
    link = "" if page is None else f"; see also {page}{f'jobs/{ids}' if len(numbers) == 1 else ''}"
    return f"{jobs}; {again}{link}"


@contextmanager
def _shower(console: Console, *, quiet: bool) -> Iterator[Callable[[list[Job] | None, Conn | None], None]]:
    """Yield a function that shows jobs as they are now; None stands for a lost connection."""
    if quiet:
        yield lambda _jobs, _conn: None
    elif console.is_interactive:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda jobs, conn: live.update(_screen(jobs, conn), refresh=True)
    else:
        log = _ChangeLog(console)
        yield lambda jobs, _conn: log.show(jobs)


def _screen(jobs: list[Job] | None, conn: Conn | None) -> RenderableType:
    if jobs is None or conn is None:
        return LOST
    if len(jobs) > 1:
        return Group(*map(job_text.line, jobs))
    [job] = jobs
    return Group(job_text.lines(job), *details(conn, job))


def details(conn: Conn, job: Job) -> list[RenderableType]:
    """Return lines for the errors with the most failed items, and for the items that have run for the longest time."""
    held: list[Job] = []
    if job["running"]:
        for number in [one["job"] for one in job["stages"] if one["running"]] or [job["id"]]:
            held += queries.run(conn, queries.items(number, state="running", limit=HELD_ITEMS))[0]
    errors: list[Job] = queries.run(conn, queries.errors(job["id"]))
    return job_text.details(errors, held)


class _ChangeLog:
    """Prints a line when the summary of a job changes (state, whole percent, stalled or hung), and every ten seconds
    while it runs.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last: dict[int, tuple[float, tuple[object, ...]]] = {}

    def show(self, jobs: list[Job] | None) -> None:
        """Print a headline for each job whose summary has changed since its last line; print a finished job in full."""
        if jobs is None:
            self._line(0, (None,), LOST)
        for job in jobs or ():
            whole = (
                [job_text.lines(job)] if job["state"] in JOB_FINAL else [job_text.headline(job), *job_text.hung(job)]
            )
            self._line(job["id"], _summary(job), *whole, ends=job["state"] in JOB_FINAL)

    def _line(self, number: int, now: tuple[object, ...], *text: RenderableType, ends: bool = False) -> None:
        at, before = self.last.get(number, (0.0, ()))
        if now != before or (not ends and time.monotonic() - at >= LINE_SECONDS):
            self.last[number] = time.monotonic(), now
            self.console.print(*text, sep="\n")


def _summary(job: Job) -> tuple[object, ...]:
    hung = [(one["item"], one["place"]) for one in job["hung"]]
    stages = [stage["state"] for stage in job["stages"]]
    return job["state"], int(job["progress"] * 100), job["stalled"], hung, stages
