"""Following a job: a live bar on a terminal, a line a change elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import psycopg
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from callboard.commands import output
from callboard.commands.errors import CommandError
from callboard.commands.jobs import job_text
from callboard.sql.pool import Conn, connect, database_address
from callboard.sql.reads import queries
from callboard.sql.states import JOB_FINAL

#: Seconds between two looks.
PAUSE = 0.5

Job = dict[str, Any]


def follow(job: int, *, quiet: bool = False) -> Job:
    """Show a job until it ends; returns it as it ended. A lost connection is shown and made anew."""
    with _shower(output.console(), quiet=quiet) as show, Look(job) as look:
        while True:
            found = look.once()
            show(found)
            if found and found["state"] in JOB_FINAL:
                return found
            time.sleep(PAUSE)


class Look:
    """A job, looked at again and again over one connection."""

    def __init__(self, job: int) -> None:
        self.job = job
        self.conn: Conn | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.conn:
            self.conn.close()

    def once(self) -> Job | None:
        """The job as it is now; None where there is no database at the moment."""
        try:
            self.conn = self.conn or connect(database_address())
            found = queries.run(self.conn, queries.job(self.job))
        except psycopg.OperationalError:
            self.__exit__()
            self.conn = None
            return None
        if found is None:
            raise CommandError(f"job {self.job} was deleted while it was watched")
        return found


@contextmanager
def _shower(console: Console, *, quiet: bool) -> Iterator[Callable[[Job | None], None]]:
    if quiet:
        yield lambda _: None
    elif console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda job: live.update(_lost() if job is None else job_text.lines(job), refresh=True)
    else:
        yield _Lines(console).show


def _lost() -> RenderableType:
    return Text("connection to the database lost; trying again", style="yellow")


class _Lines:
    """A line whenever the state or the whole percent changed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last: tuple[object, ...] | None = None

    def show(self, job: Job | None) -> None:
        now = (None,) if job is None else _told(job)
        if now == self.last:
            return
        self.last = now
        ended = job is not None and job["state"] in JOB_FINAL
        line = _lost() if job is None else job_text.lines(job) if ended else job_text.headline(job)
        self.console.print(line)
        if job is not None and not ended:
            for one in job_text.hung(job):
                self.console.print(one)


def _told(job: Job) -> tuple[object, ...]:
    hung = [(one["item"], one["place"]) for one in job["hung"]]
    stages = [stage["state"] for stage in job["stages"]]
    return job["state"], int(job["progress"] * 100), job["stalled"], hung, stages
