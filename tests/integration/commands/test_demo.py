"""`callboard demo` runs one job over real files, reports it truthfully, and leaves nothing behind."""

import json
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from callboard.commands.local import demo
from callboard.commands.services import wait_until
from tests.support.programs import fault, left, run, running

BROKEN = 5


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder of sources, one of which is broken."""
    folder = tmp_path / "sources"
    (folder / "deeper").mkdir(parents=True)
    for n in range(30):
        (folder / "deeper" / f"some{n}.py").write_text(f"x = {n}\n")
    (folder / "mistaken.py").write_text("x = = 1\n")
    (folder / "notes.txt").write_text("no source")
    return folder


@pytest.fixture
def place() -> Iterator[dict[str, str]]:
    """Where a demo makes its temporary folder; a path that's short enough for sockets, and empty at the end."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        yield {"TMPDIR": folder}
        assert wait_until(lambda: not left(Path(folder)), 300), left(Path(folder))
        assert list(Path(folder).iterdir()) == []


def test_demo_counts_each_source_by_its_outcome(tmp_path: Path, sources: Path, place: dict[str, str]) -> None:
    done = run(tmp_path, "demo", "--path", str(sources), "--json", env=place, timeout=300)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    counts = {name: summary["job"][name] for name in ("state", "total", "succeeded", "failed")}
    assert counts == {"state": "completed", "total": 31 + BROKEN, "succeeded": 30, "failed": 1 + BROKEN}
    assert {group["type"]: group["count"] for group in summary["errors"]} == {
        "SyntaxError": 4,
        "IndentationError": 1,
        "UnicodeDecodeError": 1,
    }
    assert all(group["example"] and group["source"].endswith(".py") for group in summary["errors"])
    assert summary["broker"] == "RabbitMQ"
    assert summary["job"]["rate"] > 0
    assert summary["web_url"] in done.stderr


def test_demo_prints_a_summary_and_with_keep_runs_until_it_is_ended(
    tmp_path: Path, sources: Path, place: dict[str, str]
) -> None:
    options = ["--path", str(sources), "--in-process", "--keep"]
    with running(tmp_path, "demo", *options, env=place, until="Ctrl-C stops it") as process:
        said = process.log.read_text()
        assert "30 succeeded · 6 failed" in said
        assert "4 × SyntaxError, for example" in said
        assert "36 items, " in said
        (folder,) = Path(place["TMPDIR"]).glob("callboard-demo-*")
        jobs: list[dict[str, Any]] = json.loads(run(folder, "jobs", "--json").stdout)["jobs"]
        assert [job["state"] for job in jobs] == ["completed"]
        assert process.stop(300) == 0
        assert "Traceback" not in process.log.read_text()


def test_demo_runs_a_pipeline_with_its_services(tmp_path: Path, place: dict[str, str]) -> None:
    """An error that a retry mends is none of the errors of failed items."""
    done = run(tmp_path, "demo", "stocks", "--in-process", "--json", env=place)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    counts = {name: summary["job"][name] for name in ("state", "succeeded", "failed")}
    assert counts == {"state": "completed", "succeeded": 96, "failed": 4}
    assert summary["broker"] == "in-process"
    assert summary["job"]["retries"] > 0
    (error,) = summary["errors"]
    assert (error["count"], "was delisted" in error["example"]) == (4, True)
    assert summary["figures"]["calls"] == 100 + summary["job"]["retries"]
    assert set(summary["wanted"]) < set(summary["figures"])
    assert summary["figures"]["seconds"] > 0


def test_demo_lists_the_pipelines_and_starts_nothing(tmp_path: Path) -> None:
    rows = json.loads(run(tmp_path, "demo", "--list", "--json").stdout)["pipelines"]
    assert [row["name"] for row in rows] == ["ads", "stocks", "audit", "pages", "planning"]
    assert "audit" in run(tmp_path, "demo", "--list").stdout
    assert "must be one of ads, stocks" in fault(tmp_path, "demo", "shares", code=2)
    assert "omit --path" in fault(tmp_path, "demo", "ads", "--path", str(tmp_path), code=2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, place: dict[str, str], number: signal.Signals) -> None:
    with running(tmp_path, "demo", "--in-process", env=place, until=" running ") as process:
        process.send(number)
        assert wait_until(lambda: not process.running(), 300)
        assert process.kill() != 0
        assert "Traceback" not in process.log.read_text()


def test_a_folder_that_does_not_exist_is_wrong_usage(tmp_path: Path) -> None:
    assert "does not exist" in fault(tmp_path, "demo", "--path", "nowhere", code=2)


def test_the_standard_library_is_measured_without_installed_packages() -> None:
    found = [Path(path) for path in demo.python_sources(demo.standard_library())]
    assert demo.standard_library().resolve() / "ast.py" in found
    assert not [path for path in found if {"site-packages", "dist-packages"} & set(path.parts)]
