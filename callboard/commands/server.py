"""Commands for operators: `migrate serve config`."""

import ipaddress
import socket
from typing import Annotated

import typer
import uvicorn

from callboard.commands import actor_modules, output, settings
from callboard.commands.database import reach
from callboard.commands.errors import CommandError
from callboard.commands.output import AsJson
from callboard.sql import migrate as migrations
from callboard.sql.pool import database_address
from callboard.web import create_app

app = typer.Typer()

#: Host names by which a browser on this machine asks for a web app that listens on loopback.
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")


@app.command()
def migrate(*, as_json: AsJson = False) -> None:
    """Bring the database's schema up to date. Safe to run twice and from two places at once."""
    url = database_address()
    with reach(url):
        applied = migrations.migrate(url)
    if as_json:
        output.document({"applied": applied})
    else:
        typer.echo(f"applied {', '.join(applied)}" if applied else "the schema is up to date")


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name to answer to, as a proxy's (may be repeated).")
    ] = None,
    open_to_everyone: Annotated[
        bool, typer.Option("--open-to-everyone", help="Let anybody who reaches HOST use it, without a login.")
    ] = False,
) -> None:
    """Serve the web app and the API until Ctrl-C."""
    if not open_to_everyone and not _loopback(host):
        raise CommandError(
            f"{host} can be reached from other machines, and there is no login: listen on 127.0.0.1, "
            "or use --open-to-everyone",
            code=2,
        )
    names = None if open_to_everyone and not allow_host else [*LOCAL, host, *(allow_host or [])]
    web = create_app(url=database_address(), hosts=names)
    listener = _listen(host, port)
    bound = f"[{host}]" if ":" in host else host
    typer.echo(f"Callboard is at http://{bound}:{listener.getsockname()[1]}/")
    uvicorn.Server(uvicorn.Config(web, log_level="warning")).run(sockets=[listener])


@app.command()
def config(*, as_json: AsJson = False) -> None:
    """List every setting with its value, its default and what it does; secrets are masked.

    In the folder of a running `callboard up` its addresses are the values, as for all commands there.
    """
    actor_modules.use_running_stack()
    rows = settings.described()
    if as_json:
        output.document({"settings": rows})
    else:
        output.table(rows, ("name", "value", "default", "meaning"))


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why = error.strerror or error
        raise CommandError(f"can't listen on {host}:{port}: {why}; use another --port") from None
