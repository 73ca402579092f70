"""`callboard`: all commands, their exit codes, and one line for an error."""

import gc
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from inspect import signature
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption
from typer.exceptions import TyperException
from typer.models import CommandInfo

from callboard.commands import doctor, output, put_back, server, sweep, tokens
from callboard.commands.errors import CommandError, explain
from callboard.commands.jobs import actions, purge, show, submit
from callboard.commands.local import demo, up
from callboard.sql import settings

#: Each module has its commands in a typer `app`; add a new module here.
GROUPS = (up, demo, submit, show, actions, put_back, doctor, server, sweep, purge, tokens)

HELP = """Progress that is always true for Dramatiq actors.

Start with `callboard demo`, or with `callboard up` in the folder of your actors. Then, in another terminal there:

callboard submit ACTOR items.jsonl --name "a first job"

callboard watch @latest

callboard errors @latest

callboard retry @latest

`callboard --install-completion` makes the shell complete commands and options.
"""

app = typer.Typer(help=HELP, pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:  # noqa: FBT001 — typer's
    if asked:
        typer.echo(f"callboard {version('callboard')}")
        raise typer.Exit


@app.callback()
def _check_settings(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    try:
        settings.check()
    except settings.NotConfigured as error:
        raise CommandError(str(error), code=2) from None


class Command(TyperCommand):
    """A command that refuses an option that is given twice: typer would silently drop the first value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. Raises a usage error for a single-value option that is given more than once."""
        if not ctx.resilient_parsing:
            *_, given = self.make_parser(ctx).parse_args(args=list(args))
            for option in self.params:
                once = isinstance(option, TyperOption) and not (option.multiple or option.is_flag)
                if once and given.count(option) > 1:
                    ctx.fail(f"{option.opts[0]} takes one value, and {given.count(option)} were given")
        return super().parse_args(ctx, args)


def _commands(group: typer.Typer) -> Iterator[CommandInfo]:
    yield from group.registered_commands
    for inner in group.registered_groups:
        if inner.typer_instance:
            yield from _commands(inner.typer_instance)


for group in GROUPS:
    app.add_typer(group.app)
for command in _commands(app):
    command.cls = Command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 ok, 1 failed, 2 wrong usage, 130 Ctrl-C. An error is one line on stderr.

    Raises an error that `explain` does not know, which is a bug.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        gc.freeze()  # imported modules are no garbage, and scanning them at exit takes 0.2 s
    output.prepare_streams()
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # pika logs a failure in many lines, a command in one
    try:
        code = app(given or ["--help"], standalone_mode=False, prog_name="callboard")
    except TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "callboard"
        return _fail(f"{error.format_message().rstrip('.')} (see `{command} --help`)", error.exit_code)
    except typer.Abort:
        return _fail("stopped", 1)
    except BrokenPipeError:
        output.drop_stdout()  # the reader has closed the pipe
        return 1
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        return _fail(line, error.code if isinstance(error, CommandError) else 1)
    return code if given and isinstance(code, int) else 0 if given else 2


def _fail(line: str, code: int) -> int:
    typer.echo(f"callboard: {_with_options(' '.join(line.split()))}", err=True)
    return code


def _with_options(line: str) -> str:
    """Return an error with options as a command line writes them, `--key-reuse`; the functions below say key_reuse."""
    names = {name for command in _commands(app) if command.callback for name in signature(command.callback).parameters}
    options = "|".join(name for name in names if "_" in name)
    return re.sub(rf"(?<![\w'\"])({options})(?![\w'\"])", lambda found: f"--{found[0].replace('_', '-')}", line)


if __name__ == "__main__":
    sys.exit(main())
