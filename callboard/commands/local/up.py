"""`callboard up`: all of Callboard on this machine until Ctrl-C."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from callboard.commands.errors import CommandError
from callboard.commands.local.stack import LocalStack
from callboard.commands.services import ends_on_sigterm, wait_for_the_end

app = typer.Typer()

FOLDER = Path(".callboard")
#: The default number of worker processes.
PROCESSES = min(os.cpu_count() or 1, 4)

Processes = Annotated[int, typer.Option(min=1, help="Worker processes.", show_default="processors, at most 4")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of each worker process.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="The web app's port; 0: any free one.")]
InProcess = Annotated[
    bool, typer.Option("--in-process", help="Use Dramatiq's in-process broker, even if RabbitMQ is installed.")
]


@app.command()
def up(
    *,
    processes: Processes = PROCESSES,
    threads: Threads = 8,
    port: Port = 0,
    in_process: InProcess = False,
    reload: Annotated[
        bool, typer.Option("--reload", help="Replace the workers when a Python source in this folder changes.")
    ] = False,
    no_workers: Annotated[
        bool, typer.Option("--no-workers", help="Run database, broker and web app; start workers yourself.")
    ] = False,
) -> None:
    """Run everything on this machine until Ctrl-C: database, broker, workers, web app.

    It uses the database of DATABASE_URL and the RabbitMQ of AMQP_URL.
    If one is unset, it starts its own in .callboard/.
    CALLBOARD_ACTORS names the modules with your actors.
    With --reload workers finish their running items before they restart: no item fails or is lost.
    """
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n", encoding="ascii")
    folder = FOLDER.resolve()
    with (
        ends_on_sigterm(),
        locked(folder),
        LocalStack(
            folder,
            processes=0 if no_workers else processes,
            threads=threads,
            port=port,
            in_process=in_process,
            reload=Path.cwd() if reload else None,
        ) as stack,
    ):
        typer.echo(f"Callboard is at {stack.login_link}")
        typer.echo("Ctrl-C stops everything", err=True)
        wait_for_the_end()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder for a block; the system unlocks it when the process ends. Raises CommandError if it is locked."""
    with (folder / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandError(f"another `callboard up` runs in {folder}: stop it, or use it") from None
        yield
