"""Imports run one way, and every module has one name."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.imports import imported
from tests.support.paths import ROOT

SHORT = {"sql", "middleware", "web", "actors"}
SOURCES = [
    path
    for folder in ("callboard", "tests", *sorted(SHORT))
    for path in sorted((ROOT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_is_imported_by_its_short_name(path: Path) -> None:
    names = {name.partition(".")[0] for name in imported(path)}
    assert not names & SHORT


def test_imports_keep_the_contracts() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
