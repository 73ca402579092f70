"""Terminals and pipes as they come: of any encoding, closed, or full."""

import subprocess
from pathlib import Path

import pytest

from callboard.sql.pool import connect
from tests.support.jobs import make_mixed_job
from tests.support.programs import COMMAND, environment


def shell(folder: Path, url: str, line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell in which `callboard` stands for the command; nothing may be a traceback."""
    done = subprocess.run(
        ["bash", "-c", f'callboard() {{ {" ".join(COMMAND)} "$@"; }}; set -o pipefail; {line}'],
        cwd=folder,
        env=environment({"DATABASE_URL": url, **variables}),
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    assert b"Exception" not in done.stderr, done.stderr.decode()
    return done


@pytest.fixture
def job(database_url: str) -> int:
    """A job whose texts no single-byte encoding has."""
    with connect(database_url) as conn:
        made = make_mixed_job(conn, name="größer → 日本")
        conn.execute("UPDATE callboard.jobs SET step = '✓ größer' WHERE id = %s", (made,))
    return made


def test_what_an_encoding_lacks_is_escaped(tmp_path: Path, database_url: str, job: int) -> None:
    """It has the umlauts, but neither the arrow nor the ideographs."""
    line = f"callboard jobs && callboard status {job} && callboard stat üß"
    done = shell(tmp_path, database_url, line, PYTHONIOENCODING="cp1252", PYTHONUTF8="0")
    assert done.returncode == 2  # of the last
    assert "größer \\u2192 \\u65e5\\u672c".encode("cp1252") in done.stdout


def test_closed_and_full_streams_give_one_line_at_most(tmp_path: Path, database_url: str, job: int) -> None:
    for line, code, said in (
        ("callboard submit measure_source <&-", 2, b"there is no standard input"),
        ("""echo '["/"]' | callboard submit measure_source - >/dev/full""", 1, b"can't write the output"),
        ("callboard jobs >&-", 0, b""),
        ("callboard stat 2>&-", 2, b""),
        ("callboard jobs --json >/dev/full", 1, b"No space left on device"),
        ("callboard items --limit 100 --json " + str(job) + " | true", 1, b""),
    ):
        done = shell(tmp_path, database_url, line)
        assert (done.returncode, said in done.stderr) == (code, True), (line, done)
        assert done.stderr.count(b"\n") <= 1
