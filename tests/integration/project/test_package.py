"""The wheel holds the four folders as plain ones, with everything that lies in them."""

import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support.paths import ROOT


def shipped() -> set[str]:
    """The names of all files that git knows or would know, by import path."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "callboard", "sql", "middleware", "web"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    names = (name if name.startswith("callboard/") else f"callboard/{name}" for name in listed)
    return {name for name in names if (ROOT / name).is_file()}


def test_wheel_by_way_of_sdist_holds_all_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, capture_output=True, check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert shipped() <= names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"callboard"}
