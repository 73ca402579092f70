"""`callboard demo`: everything in a temporary folder, and one real job over real files."""

import os
import sysconfig
from collections.abc import Iterator
from contextlib import nullcontext
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

#: Folders of the standard library with files that are not part of it.
FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


@app.command()
def demo(
    *,
    path: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Measure the Python sources in this folder instead."),
    ] = None,
    processes: up.Processes = up.PROCESSES,
    threads: up.Threads = 8,
    port: up.Port = 0,
    in_process: up.InProcess = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it running until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start everything in a temporary folder and run one job: it measures each source of Python's standard library.

    Five more sources are broken on purpose, so that there are failures to see.
    """
    with ends_on_sigterm(), TemporaryDirectory(prefix="callboard-demo-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / ".callboard"
        folder.mkdir()
        with LocalStack(
            folder, processes=processes, threads=threads, port=port, in_process=in_process, throwaway=True
        ) as stack:
            typer.echo(f"Callboard is at {stack.login_link}", err=as_json)
            summary = run(stack, path or standard_library(), folder, quiet=as_json)
            output.document(summary) if as_json else print_summary(summary)
            if keep:
                typer.echo(f"Ctrl-C stops it; to look at it from a terminal: cd {place}", err=True)
                wait_for_the_end()
    raise typer.Exit(0 if summary["job"]["state"] == "completed" else 1)


def run(stack: LocalStack, path: Path, folder: Path, *, quiet: bool) -> dict[str, Any]:
    """Measure the sources in `path` and the broken ones in one job, and show it until it ends; return a summary."""
    path = path.resolve()
    sources = [*sorted(python_sources(path)), *copy_broken(folder / "broken-on-purpose")]
    # The in-process worker has assembled the actors already, and goes on with their broker.
    with nullcontext() if stack.in_process else actor_modules.assembled():
        job = callboard.submit("measure_source", sources, name=f"Python sources in {path}").id
    end = follow.follow(job, quiet=quiet)
    with connect(database_address()) as conn:
        errors = [*errors_by_type(conn, job)]
    broker = "in-process" if stack.in_process else "RabbitMQ"
    return {"job": end, "errors": errors, "path": str(path), "broker": broker, "web_url": stack.web_url}


def standard_library() -> Path:
    """The folder of this interpreter's own library."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_sources(folder: Path) -> Iterator[str]:
    """The paths of all Python sources in a folder; of the standard library without installed packages."""
    excluded = FOREIGN if folder.resolve() == standard_library().resolve() else set()
    for place, folders, names in os.walk(folder.resolve()):
        folders[:] = [name for name in folders if name not in excluded]
        yield from (str(Path(place, name)) for name in names if name.endswith(".py"))


def copy_broken(folder: Path) -> Iterator[str]:
    """Copy the sources that are broken on purpose into a new folder, under names of Python sources."""
    folder.mkdir()
    for source in sorted((files("callboard.actors") / "broken").iterdir(), key=lambda source: source.name):
        copy = folder / source.name.removesuffix(".txt")
        copy.write_bytes(source.read_bytes())
        yield str(copy)


def errors_by_type(conn: Conn, job: int) -> Iterator[dict[str, Any]]:
    """The job's errors by type, the most frequent first; each with one message as example, and the source it is in."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for group in queries.run(conn, queries.errors(job)):
        groups.setdefault(group["type"], []).append(group)
    counts = {name: sum(group["count"] for group in same) for name, same in groups.items()}
    for name in sorted(counts, key=counts.__getitem__, reverse=True):
        example = groups[name][0]
        item = queries.run(conn, queries.item(job, example["item"])) or {}
        source = next(iter(item.get("args") or ()), None)
        yield {"type": name, "count": counts[name], "example": example["message"], "source": source}


def print_summary(summary: dict[str, Any]) -> None:
    """Print the errors and the rate."""
    console, job = output.console(), summary["job"]
    for group in summary["errors"]:
        line = Text(f"{group['count']:,} × {group['type']}", style="red")
        console.print(line.append(", for example", style="default"))
        for text in (group["example"], group["source"]):
            console.print(Text("  ").append_text(output.plain(text)))
    ended = job["succeeded"] + job["failed"] + job["skipped"]
    console.print(f"{ended:,} items, {job['rate'] or 0:,.0f} items/s, by {summary['broker']}")
