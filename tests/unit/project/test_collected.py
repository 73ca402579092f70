"""The processes of a run of tests are forks of one that has imported the tests, unless one of these can't be."""

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.collected import Collected

#: As execnet sends it: a line with the text of a program.
ASK = repr("import sys; print('pytest' in sys.modules)") + "\n"


@pytest.mark.parametrize(("source", "forked"), [("def test_one() -> None: ...", True), ("raise RuntimeError", False)])
def test_a_module_that_cant_be_imported_is_imported_again(source: str, forked: bool, tmp_path: Path) -> None:
    """In a fork it would be there without its tests, and the run would pass."""
    (tmp_path / "test_it.py").write_text(source)
    collected = Collected(tmp_path, [str(tmp_path)])
    done = subprocess.run(shlex.split(collected.python), input=ASK, capture_output=True, text=True, check=True)
    collected.close()
    assert done.stdout == f"{forked}\n"
