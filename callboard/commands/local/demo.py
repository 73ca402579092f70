"""`callboard demo`: everything in a temporary folder, and one real job over real files."""

import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.text import Text

import callboard
from callboard.commands import actor_modules, output
from callboard.commands.jobs import follow
from callboard.commands.local import up
from callboard.commands.local.stack import LocalStack
from callboard.commands.output import AsJson
from callboard.commands.services import ends_on_sigterm, wait_for_the_end
from callboard.sql.pool import Conn, connect, database_address
from callboard.sql.reads import queries

app = typer.Typer()

#: What others installed among the standard library.
FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


@app.command()
def demo(
    *,
    path: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Measure the Python sources in this folder."),
    ] = None,
    processes: up.Processes = up.PROCESSES,
    threads: up.Threads = 8,
    port: up.Port = 0,
    in_process: up.InProcess = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start everything in a temporary folder and measure Python's standard library, or the sources in PATH.

    A few of ours are added that are broken on purpose, so that there are failures to look at.
    """
    with ends_on_sigterm(), TemporaryDirectory(prefix="callboard-demo-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / ".callboard"
        folder.mkdir()
        with LocalStack(
            folder, processes=processes, threads=threads, port=port, in_process=in_process, throwaway=True
        ) as stack:
            summary = show(stack, path or standard_library(), folder, quiet=as_json)
            output.document(summary) if as_json else tell(summary)
            if keep:
                typer.echo(f"Ctrl-C stops it; to look at it from a terminal: cd {place}", err=True)
                wait_for_the_end()
    raise typer.Exit(0 if summary["job"]["state"] == "completed" else 1)


def show(stack: LocalStack, path: Path, folder: Path, *, quiet: bool) -> dict[str, Any]:
    """Measure what is in `path` and what is broken, in one job, and show it; returns what became of it."""
    typer.echo(f"Callboard is at {stack.web_url}", err=quiet)
    sources = [*sorted(python_sources(path)), *broken(folder / "broken-on-purpose")]
    with submitting(stack):
        job = callboard.submit("measure_source", sources, name=f"Python sources in {path.resolve()}")
    end = follow.follow(job.id, quiet=quiet)
    with connect(database_address()) as conn:
        found = [*errors(conn, job.id)]
    broker = "in-process" if stack.in_process else "RabbitMQ"
    return {
        "job": end,
        "errors": found,
        "path": str(path.resolve()),
        "broker": broker,
        "web_url": stack.web_url,
    }


@contextmanager
def submitting(stack: LocalStack) -> Iterator[None]:
    """The actors are known here; with a broker that others work on, only for as long as the block."""
    with ExitStack() as cleanup:
        if not stack.in_process:
            cleanup.enter_context(actor_modules.assembled())
        yield


def standard_library() -> Path:
    """The folder of this interpreter's own library."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_sources(folder: Path) -> Iterator[str]:
    """The paths of all Python sources in a folder; of the standard library without what others installed there."""
    own = folder == standard_library()
    for place, folders, names in os.walk(folder.resolve()):
        if own:
            folders[:] = [name for name in folders if name not in FOREIGN]
        yield from (str(Path(place, name)) for name in names if name.endswith(".py"))


def broken(folder: Path) -> Iterator[str]:
    """Puts the sources that are broken on purpose into a folder, under names that make them Python."""
    folder.mkdir()
    for source in sorted((files("callboard.actors") / "broken").iterdir(), key=lambda source: source.name):
        copy = folder / source.name.removesuffix(".txt")
        copy.write_bytes(source.read_bytes())
        yield str(copy)


def errors(conn: Conn, job: int) -> Iterator[dict[str, Any]]:
    """The job's errors by type, the most frequent first, each with an example: its message and the source it is in."""
    found = queries.run(conn, queries.errors(job))
    count: Counter[str] = Counter()
    for group in found:
        count[group["type"]] += group["count"]
    for kind, number in count.most_common():
        example = next(group for group in found if group["type"] == kind)
        item = queries.run(conn, queries.item(job, example["item"])) or {}
        source = next(iter(item.get("args") or ()), None)
        yield {"type": kind, "count": number, "example": example["message"], "source": source}


def tell(summary: dict[str, Any]) -> None:
    """Print what became of it."""
    console, job = output.console(), summary["job"]
    for group in summary["errors"]:
        line = Text(f"{group['count']:,} × {group['type']}", style="red")
        console.print(line.append(", for example", style="default"))
        console.print(Text("  ").append_text(output.plain(group["example"])))
        console.print(Text("  ").append_text(output.plain(group["source"])))
    ended = job["succeeded"] + job["failed"] + job["skipped"]
    console.print(f"{ended:,} items, {job['rate'] or 0:,.0f} items/s, by {summary['broker']}")
