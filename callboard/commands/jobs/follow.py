"""Follows a job to its end: a live bar on a terminal, elsewhere a line for each change."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from rich.console import Console
from rich.live import Live
from rich.text import Text

from callboard.commands import output
from callboard.commands.errors import CommandError
from callboard.commands.jobs import job_text
from callboard.sql.pool import Conn, connect, database_address
from callboard.sql.reads import queries
from callboard.sql.states import JOB_FINAL

#: Seconds between two reads of the job.
READ_SECONDS = 0.5
LOST = Text("connection to the database lost; trying again", style="yellow")

Job = dict[str, Any]


def follow(number: int, *, quiet: bool = False) -> Job:
    """Show a job until it ends; return it as it ended. A lost connection is shown, and made anew.

    `quiet`: show nothing. Raises CommandError when the job is deleted meanwhile.
    """
    with _shower(output.console(), quiet=quiet) as show:
        while True:
            with suppress(psycopg.OperationalError), connect(database_address()) as conn:
                return _follow(conn, number, show)
            show(None)
            time.sleep(READ_SECONDS)


def _follow(conn: Conn, number: int, show: Callable[[Job], None]) -> Job:
    while True:
        job = queries.run(conn, queries.job(number))
        if job is None:
            raise CommandError(f"job {number} was deleted while it was watched")
        show(job)
        if job["state"] in JOB_FINAL:
            return job
        time.sleep(READ_SECONDS)


@contextmanager
def _shower(console: Console, *, quiet: bool) -> Iterator[Callable[[Job | None], None]]:
    """A function that shows a job as it is now; None stands for a lost connection."""
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda job: live.update(job_text.lines(job) if job else LOST, refresh=True)
    else:
        yield _ChangeLog(console).show


class _ChangeLog:
    """Prints a line whenever the summary of a job changes: its state, its whole percent, what is stalled or hung."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last: tuple[object, ...] | None = None

    def show(self, job: Job | None) -> None:
        """Print a headline if the job's summary differs from that of the last call; a finished job in full."""
        now = (None,) if job is None else _summary(job)
        if now == self.last:
            return
        self.last = now
        if job is None:
            self.console.print(LOST)
        elif job["state"] in JOB_FINAL:
            self.console.print(job_text.lines(job))
        else:
            self.console.print(job_text.headline(job), *job_text.hung(job), sep="\n")


def _summary(job: Job) -> tuple[object, ...]:
    hung = [(one["item"], one["place"]) for one in job["hung"]]
    stages = [stage["state"] for stage in job["stages"]]
    return job["state"], int(job["progress"] * 100), job["stalled"], hung, stages
