"""Imports run one way, and every module has one name."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.imports import imported
from tests.support.paths import ROOT

SHORT = {"sql", "middleware", "web", "actors"}
SOURCES = [path for folder in ("callboard", "tests", *sorted(SHORT)) for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_imported_by_its_short_name(path: Path) -> None:
    names = {name.partition(".")[0] for name in imported(path)}
    assert not names & SHORT


def test_imports_keep_the_contracts() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_transactions_are_begun_by_the_function_that_bounds_them() -> None:
    """One that psycopg begins would hold its locks for as long as its client is frozen."""
    own = {"sql/pool.py", "sql/migrate.py"}
    begun = {
        name
        for path in SOURCES
        if (name := str(path.relative_to(ROOT))).split("/")[0] != "tests" and ".transaction()" in path.read_text()
    }
    assert begun == own
