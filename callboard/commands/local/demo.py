"""`callboard demo`: runs everything in a temporary folder, with one real job over real files."""

import os
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.text import Text

import callboard
from callboard.commands import actor_modules, output
from callboard.commands.errors import CommandError
from callboard.commands.jobs import follow
from callboard.commands.local import up
from callboard.commands.local.pipelines import PIPELINES, Pipeline, counted, remote_world, seconds, watch_start
from callboard.commands.local.stack import LocalStack
from callboard.commands.output import AsJson
from callboard.commands.services import ends_on_sigterm, wait_for_the_end
from callboard.sql.pool import Conn, connect, database_address
from callboard.sql.reads import queries

app = typer.Typer()


def _pipeline(name: str) -> str:
    if name not in PIPELINES:
        raise typer.BadParameter(f"must be one of {', '.join(PIPELINES)}, not {name!r}")
    return name


ONE = typer.Argument(
    metavar="PIPELINE", parser=_pipeline, show_default=False,
    help=f"Run a pipeline instead, with simulated remote services: {', '.join(PIPELINES)}.",
)  # fmt: skip

#: Folders below the standard library with files that are not part of it.
FOREIGN = {"site-packages", "dist-packages", "__pycache__"}


@app.command()
def demo(
    pipeline: Annotated[str | None, ONE] = None,
    *,
    path: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Measure the Python sources in this folder instead."),
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the pipelines, and run nothing.")] = False,
    processes: up.Processes = up.PROCESSES,
    threads: up.Threads = 8,
    port: up.Port = 0,
    in_process: up.InProcess = False,
    keep: Annotated[bool, typer.Option("--keep", help="Keep everything running until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start everything in a temporary folder and run one job: it measures each source of Python's standard library.

    Five more sources are broken on purpose, to show failures.
    """
    if list_them:
        print_pipelines(as_json=as_json)
        return
    if pipeline and path:
        raise CommandError(f"the pipeline {pipeline} reads no files: omit --path", code=2)
    with ends_on_sigterm(), TemporaryDirectory(prefix="callboard-demo-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / ".callboard"
        folder.mkdir()
        with (
            remote_world(folder) if pipeline else nullcontext(),
            LocalStack(
                folder, processes=processes, threads=threads, port=port, in_process=in_process, throwaway=True
            ) as stack,
        ):
            typer.echo(f"Callboard is at {stack.login_link}", err=as_json)
            if pipeline:
                summary = run_pipeline(stack, PIPELINES[pipeline], quiet=as_json)
            else:
                summary = run(stack, partial(measure, path, folder), quiet=as_json)
            output.document(summary) if as_json else print_summary(summary)
            if keep:
                typer.echo(f"Ctrl-C stops it; to use commands in another terminal: cd {place}", err=True)
                wait_for_the_end()
    raise typer.Exit(0 if summary["job"]["state"] == "completed" else 1)


def print_pipelines(*, as_json: bool) -> None:
    """Print the pipelines."""
    rows = [{"name": name, "does": pipeline.about} for name, pipeline in PIPELINES.items()]
    output.document({"pipelines": rows, "next": None}) if as_json else output.table(rows, ("name", "does"))


def measure(path: Path | None, folder: Path) -> callboard.Job:
    """Make a job of the sources in `path`, or of the standard library, plus the broken ones."""
    place = (path or standard_library()).resolve()
    sources = [*sorted(python_sources(place)), *copy_broken(folder / "broken-on-purpose")]
    return callboard.submit("measure_source", sources, name=f"Python sources in {place}")


def run(stack: LocalStack, start: Callable[[], callboard.Job], *, quiet: bool) -> dict[str, Any]:
    """Start a job and show it until it ends; return the summary."""
    # The in-process worker has already imported the actors, and keeps using their broker.
    with nullcontext() if stack.in_process else actor_modules.assembled():
        job = start().id
    [end] = follow.follow([job], quiet=quiet)
    with connect(database_address()) as conn:
        errors = [*errors_by_type(conn, job)]
    broker = "in-process" if stack.in_process else "RabbitMQ"
    return {"job": end, "errors": errors, "broker": broker, "web_url": stack.web_url}


def run_pipeline(stack: LocalStack, pipeline: Pipeline, *, quiet: bool) -> dict[str, Any]:
    """Like `run`; the summary also has the pipeline's figures, and the counts of the services."""
    figures: dict[str, float] = {}

    def start() -> callboard.Job:
        began = time.monotonic()
        job = pipeline.start()
        figures.update(watch_start(job, began))
        return job

    summary = run(stack, start, quiet=quiet)
    figures["seconds"] = seconds(summary["job"])
    return {**summary, "figures": {**figures, **counted()}, "wanted": dict(pipeline.wanted)}


def standard_library() -> Path:
    """Return the folder of this interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def python_sources(folder: Path) -> Iterator[str]:
    """Yield the paths of all Python sources in a folder; in the standard library without installed packages."""
    excluded = FOREIGN if folder.resolve() == standard_library().resolve() else set()
    for place, folders, names in os.walk(folder.resolve()):
        folders[:] = [name for name in folders if name not in excluded]
        yield from (str(Path(place, name)) for name in names if name.endswith(".py"))


def copy_broken(folder: Path) -> Iterator[str]:
    """Copy the sources that are broken on purpose into a new folder, with the suffix .py; yield their paths."""
    folder.mkdir()
    for source in sorted((files("callboard.actors") / "broken").iterdir(), key=lambda source: source.name):
        copy = folder / source.name.removesuffix(".txt")
        copy.write_bytes(source.read_bytes())
        yield str(copy)


def errors_by_type(conn: Conn, job: int) -> Iterator[dict[str, Any]]:
    """Yield the errors of failed items by type, the most frequent first, each with an example message and its item."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for group in queries.run(conn, queries.errors(job)):
        if group["failed"]:
            groups.setdefault(group["type"], []).append(group)
    counts = {name: sum(group["failed"] for group in same) for name, same in groups.items()}
    for name in sorted(counts, key=counts.__getitem__, reverse=True):
        example = groups[name][0]
        item = queries.run(conn, queries.item(example["job"], example["item"])) or {}
        arguments = [*(item.get("args") or ()), *(item.get("kwargs") or {}).values()]
        source = ", ".join(map(str, arguments)) or None
        yield {"type": name, "count": counts[name], "example": example["message"], "source": source}


def print_summary(summary: dict[str, Any]) -> None:
    """Print the errors, the rate, and the figures."""
    console, job = output.console(), summary["job"]
    for group in summary["errors"]:
        line = Text(f"{group['count']:,} × {group['type']}", style="red")
        console.print(line.append(", for example", style="default"))
        for text in (group["example"], group["source"]):
            console.print(Text("  ").append_text(output.plain(text)))
    ended = job["succeeded"] + job["failed"] + job["skipped"]
    console.print(f"{ended:,} items, {job['rate'] or 0:,.0f} items/s, by {summary['broker']}")
    if figures := summary.get("figures"):
        wanted = summary["wanted"]
        rows = [
            {"figure": name.replace("_", " "), "value": value, "wanted": wanted.get(name)}
            for name, value in figures.items()
        ]
        output.table(rows, ("figure", "value", "wanted"))
