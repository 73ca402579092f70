"""Commands for tokens, which give access to the web app: `token create|list|revoke`."""

from typing import Annotated

import typer

from callboard.commands import output
from callboard.commands.database import database
from callboard.commands.errors import CommandError
from callboard.commands.jobs.show import After, Limit, find_job, print_page
from callboard.commands.output import AsJson, one_of
from callboard.job import acting
from callboard.sql.pool import Conn, running_here
from callboard.sql.reads import queries
from callboard.sql.states import SCOPES
from callboard.sql.writes import tokens
from callboard.words import count

app = typer.Typer()
group = typer.Typer(help="Tokens give programs and people access to the web app: create, list and revoke them.")
app.add_typer(group, name="token")

Scopes = Annotated[
    list[str] | None,
    one_of(SCOPES, "What it allows (may be repeated; default: read, submit and control)", "--scope", metavar="SCOPE"),
]


@group.command()
def create(
    name: Annotated[str | None, typer.Argument(help="The owner's name; the history of jobs shows it.")] = None,
    *,
    scope: Scopes = None,
    tenant: Annotated[str | None, typer.Option(help="Only for the jobs of this tenant.")] = None,
    job: Annotated[int | None, typer.Option(min=0, help="Only to read the fields of this job.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Print a link instead, which logs a browser in once.")] = False,
    expires: Annotated[
        str | None, typer.Option(metavar="SPAN", help="Time until it expires: 12h, 30d, or forever.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a token and print it, only this once. `callboard token create ci --scope submit --expires 90d`.

    Programs send it with each request, as `Authorization: Bearer cb_…`; people enter it on the login page.
    A link has all scopes, unless --scope is given, and is valid for a day.
    """
    if job is not None and (scope or tenant or link):
        raise CommandError("a token for a --job only reads that job: omit --scope, --tenant and --link", code=2)
    by = acting("cli")
    with database() as conn:
        if job is not None:
            find_job(conn, job)
        try:
            secret, row = tokens.create(
                conn, by, name=by.who if name is None else name, kind="link" if link else "api",
                scopes=scope or (SCOPES if link else None), tenant=tenant, job=job, expires=expires,
            )  # fmt: skip
        except ValueError as error:
            raise CommandError(str(error), code=2) from None
    address = login_link(secret, running_here().get("web_url", "/")) if link else None
    if as_json:
        output.document({"token": secret, **({"link": address} if address else {}), **row})
        return
    typer.echo(address or secret)
    typer.echo(f"{row['kind']} {row['id']} of {row['name']}: {', '.join(row['scopes'])}", err=True)
    if address and address.startswith("/"):
        typer.echo("put the address of the web app before this path", err=True)


@group.command("list")
def list_tokens(*, after: After = None, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List the valid tokens, links and sessions, the latest first, without their secrets."""
    with database() as conn:
        page = queries.run(conn, queries.tokens(before=after, limit=limit))
    print_page(
        "tokens", page, "id kind name tenant scopes job created_at created_by expires_at used_at",
        as_json=as_json, cells=lambda token: {**token, "scopes": " ".join(token["scopes"])},
    )  # fmt: skip


@group.command()
def revoke(
    tokens_: Annotated[list[int], typer.Argument(metavar="TOKEN…", min=0, help="Ids of `token list`.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Revoke tokens, and log out the browsers that logged in with them. Takes effect within two seconds."""
    with database() as conn:
        gone = [number for number in tokens_ if tokens.revoke(conn, number, acting("cli"))]
    if as_json:
        output.document({"revoked": gone})
    elif gone:
        typer.echo(f"revoked {count(len(gone), 'token')}")
    if missing := [str(number) for number in tokens_ if number not in gone]:
        raise CommandError(f"there is no token {', '.join(missing)}: `callboard token list` lists the valid ones")


def make_login_link(conn: Conn, web_url: str) -> str:
    """Return a new link that logs the user of this process in once, with all scopes."""
    by = acting("cli")
    secret, _ = tokens.create(conn, by, name=by.who, kind="link", scopes=SCOPES)
    return login_link(secret, web_url)


def login_link(secret: str, web_url: str) -> str:
    """Return the URL of a login link with this secret."""
    return f"{web_url}login?link={secret}"
