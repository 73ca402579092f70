"""`callboard`: the commands, and how their errors end."""

import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from callboard.commands import server, sweep
from callboard.commands.errors import CommandError, explain
from callboard.commands.jobs import actions, purge, show, submit
from callboard.commands.local import demo, up
from callboard.sql import settings

#: Each group has its own file with its own `app`; a new one is added here.
GROUPS = (up, demo, submit, show, actions, server, sweep, purge)

app = typer.Typer(
    help="Progress that is always true for Dramatiq actors.",
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def _check_settings() -> None:
    try:
        settings.check()
    except settings.NotConfigured as error:
        raise CommandError(str(error), code=2) from None


for group in GROUPS:
    app.add_typer(group.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 ok, 1 failed, 2 usage. Errors are one line on stderr."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(given or ["--help"], standalone_mode=False, prog_name="callboard")
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "callboard"
        return _fail(f"{error.format_message().rstrip('.')} (see `{command} --help`)", error.exit_code)
    except typer.Abort:
        return _fail("stopped", 1)
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        return _fail(line, error.code if isinstance(error, CommandError) else 1)
    return code if given and isinstance(code, int) else 0 if given else 2


def _fail(line: str, code: int) -> int:
    typer.echo(f"callboard: {' '.join(line.split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
