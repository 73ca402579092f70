"""Runs `-c TEXT` or `FILE ARGUMENT…` as `python` does, in a process that has Callboard's modules already."""

import runpy
import sys
from pathlib import Path

PROGRAM = "tests.support.script"


def main() -> None:
    """What the arguments say."""
    del sys.argv[0]
    if sys.argv[0] == "-c":
        text = sys.argv.pop(1)
        sys.path.insert(0, "")
        exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 — the tests' own
    else:
        sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
