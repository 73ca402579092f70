"""Commands for operators: `migrate serve config`."""

import gc
import ipaddress
import re
import socket
from typing import Annotated

import psycopg
import typer

from callboard.commands import actor_modules, output, settings, tokens
from callboard.commands.database import reach
from callboard.commands.errors import CommandError, first_line
from callboard.commands.output import AsJson
from callboard.sql import migrate as migrations
from callboard.sql.pool import connect, database_address
from callboard.sql.reads import queries

app = typer.Typer()

#: Host names that a browser on this machine uses for a web app on loopback.
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
#: Seconds for which an idle connection stays open. It must be longer than the timeouts of proxies (nginx 60 s, Traefik
#: 90 s, Caddy 120 s): otherwise a proxy would reuse a connection that is being closed, and answer 502.
IDLE_SECONDS = 150


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


def _prefix(text: str) -> str:
    """Return a prefix that a proxy strips, such as `/tools/callboard`."""
    if not re.fullmatch(r"(/[\w.~-]+)+/?", text, re.ASCII):
        raise typer.BadParameter(f"must be a path like /tools/callboard, not {text!r}")
    return text.rstrip("/")


@app.command()
def serve(
    *,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any free one.")] = 8000,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Another host name to accept, such as a proxy's (may be repeated).")
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option(metavar="PATH", parser=_prefix, help="The prefix that a proxy strips: /tools/callboard."),
    ] = None,
    open_to_everyone: Annotated[
        bool, typer.Option("--open-to-everyone", help="Need no login: anybody who reaches HOST has full access.")
    ] = False,
    link: Annotated[bool, typer.Option("--link/--no-link", help="On loopback, print a link that logs in once.")] = True,
) -> None:
    """Serve the web app and the API until Ctrl-C.

    Its users need a token: `callboard token create`. On loopback it prints a link that logs a browser in once.
    """
    # Imported here, because other commands start in half the time without the web app.
    import uvicorn  # noqa: PLC0415

    from callboard.commands.request_heads import TimedHeads  # noqa: PLC0415
    from callboard.web import create_app  # noqa: PLC0415

    url, loopback = database_address(), _loopback(host)
    if not open_to_everyone and not loopback:
        _check_login(url, host)
    # A login keeps pages of other sites out; without a login only the check of the host name does.
    guarded = bool(allow_host) or (open_to_everyone and loopback)
    names = [*LOCAL, host, *(allow_host or [])] if guarded else None
    web = create_app(url=url, open_to_everyone=open_to_everyone, hosts=names)
    listener = listen(host, port)
    # Imported objects live as long as the process: a full collection of all of them would delay every answer.
    gc.collect()
    gc.freeze()
    bound = f"[{host}]" if ":" in host else host
    address = f"http://{bound}:{listener.getsockname()[1]}/"
    shown = loopback and link and not open_to_everyone and not root_path  # its cookie has the path at the proxy
    typer.echo(f"Callboard is at {_login_link(url, address) if shown else address}")
    config = uvicorn.Config(
        web, log_level="warning", root_path=root_path or "", timeout_keep_alive=IDLE_SECONDS, http=TimedHeads
    )
    uvicorn.Server(config).run(sockets=[listener])


def _check_login(url: str, host: str) -> None:
    """Raise CommandError if other machines can reach the app and no token exists."""
    with reach(url):
        conn = connect(url)
    with conn:
        if not queries.run(conn, queries.any_login()):
            raise CommandError(
                f"{host} can be reached from other machines, and there is no token to log in with: "
                "run `callboard token create`, or listen on 127.0.0.1, or use --open-to-everyone",
                code=2,
            )


def _login_link(url: str, address: str) -> str:
    """Return a link that logs in once; the plain address if the database does not answer: the app waits for it."""
    try:
        with connect(url) as conn:
            return tokens.make_login_link(conn, address)
    except psycopg.Error as error:
        typer.echo(f"callboard: no login link, because the database refused it: {first_line(error)}", err=True)
        return address


@app.command()
def config(*, as_json: AsJson = False) -> None:
    """List every setting with its value, its default and its meaning; secrets are masked.

    In the folder of a running `callboard up` the values are its addresses, as for all commands there.
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


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address. Raises CommandError if that is not possible.

    The socket names its protocol, because asyncio sets TCP_NODELAY only then. Otherwise the second part of each answer
    would wait 40 ms until the client acknowledges the first.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        why = error.strerror or error
        raise CommandError(f"can't listen on {host}:{port}: {why}; use another --port") from None
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
