"""A `callboard` that dies when it is about to run a statement, in the middle of its transaction.

Its arguments: the statement's name, at which time, and those of the command. It deletes rows in small chunks.
"""

import os
import signal
import sys
from typing import LiteralString

from callboard.commands.main import main
from callboard.sql import statements
from callboard.sql.writes import retention, retry_action

PROGRAM = "tests.faults.rig.dying_command"


def run(name: str, times: int, arguments: list[str]) -> int:
    """The command; dies at the statement `name` when that is run for the so-manieth time."""
    real, seen = statements.statement, list[str]()

    def deadly(asked: str) -> LiteralString:
        seen.append(asked)
        if asked == name and seen.count(name) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(asked)

    for module in (statements, retry_action):
        setattr(module, "statement", deadly)  # noqa: B010 — mypy lets nobody assign it
    retention.CHUNK_ITEMS = 100
    return main(arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
