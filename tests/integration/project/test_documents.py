"""What the README has a newcomer do, done: its actor, its ways to submit, its commands, compose's web app."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

import callboard
from callboard.commands.services.child_process import Process
from tests.support import documents
from tests.support.clients import client
from tests.support.paths import ROOT
from tests.support.workers import wait_until

BIN = Path(sys.executable).parent
TIMEOUT = 120.0


class Terminal:
    """A folder with the files that the pages show, and a shell in it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment, "PATH": f"{BIN}:{os.environ['PATH']}"}
        for name, text in documents.files().items():
            (folder / name).write_text(text, encoding="utf-8")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        shell = ["bash", "-c", command]
        return subprocess.run(
            shell,
            cwd=self.folder,
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )

    def start(self, command: str, ready: str) -> Process:
        """Run in the background a line that names one program, and wait for what it says."""
        variables, words = {}, shlex.split(command)
        while "=" in words[0]:
            name, _, variables[name] = words.pop(0).partition("=")
        log = self.folder / f"{Path(words[0]).name}.log"
        environment = {**self.environment, **variables, "PYTHONUNBUFFERED": "1"}
        process = Process([BIN / words[0], *words[1:]], log=log, env=environment, cwd=self.folder)
        process.start().wait_ready(lambda: ready in log.read_text(encoding="utf-8"), TIMEOUT)
        return process


@pytest.fixture
def terminal(tmp_path: Path, environment: dict[str, str]) -> Terminal:
    return Terminal(tmp_path, environment)


@pytest.fixture
def up(terminal: Terminal) -> Iterator[Process]:
    """The README's `callboard up`, on this test's database and virtual host."""
    [line] = documents.block("sh", "=letters callboard up").splitlines()
    process = terminal.start(f"{line} --processes 1", "Ctrl-C stops everything")
    yield process
    assert process.stop(TIMEOUT) == 0


def test_the_first_actor(terminal: Terminal, up: Process, environment: dict[str, str]) -> None:
    """Submitted from the command line, then from Python; each word ends as the README says."""
    done = terminal.run(documents.block("sh", "submit count_letters"))
    assert done.returncode == 0, done.stderr
    job = int(re.findall(r"^\d+", done.stdout, re.MULTILINE)[0])
    with client(environment, ["count_letters", "add_up"]):
        status = callboard.get(job).status()
        assert (status["name"], status["total"], status["succeeded"], status["skipped"]) == (
            "three words",
            3,
            2,
            1,
        )
        assert status["retries"] == 1
        done = terminal.run("python submit.py")
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        skipped = len(range(0, 1000, 250))
        assert lines[0] == str(1000 - skipped)
        assert len(lines) == 1 + skipped + 2
        assert lines[1] == "0 an empty word"
        assert lines[-2:] == ["completed", "1000"]
        again = terminal.run("python submit.py")
        assert again.stdout.splitlines()[0] == lines[0], "the same key gives the same job"
    assert terminal.run("callboard verify").returncode == 0

    def plain_sends_are_done() -> bool:
        return '"succeeded":4' in terminal.run("callboard jobs --name count_letters --json").stdout.replace(
            " ", ""
        )

    assert wait_until(plain_sends_are_done, TIMEOUT, pause=0.2)


def test_the_stages(terminal: Terminal) -> None:
    [line] = documents.block("sh", "=audit callboard up").splitlines()
    process = terminal.start(f"{line} --processes 1", "Ctrl-C stops everything")
    done = terminal.run("python run_audit.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["generate 1 of 1", "ask 6 of 6", "analyse 6 of 6", "score 1 of 1"]
    (job,) = json.loads(terminal.run("callboard jobs --json").stdout)["jobs"]
    items = terminal.run(shown("callboard items JOB --stage 1").replace("JOB", str(job["id"])))
    assert items.stdout.count("succeeded") == 6
    assert process.stop(TIMEOUT) == 0


def shown(text: str) -> str:
    """A command that a page names in its prose."""
    assert f"`{text}`" in documents.TEXT
    return text


@pytest.mark.parametrize("command", ["jobs", "workers", "verify", "config", "migrate"])
def test_a_command_that_needs_no_job_gives_its_document(command: str, terminal: Terminal) -> None:
    done = terminal.run(f"callboard {command} --json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{")


def test_the_web_app_of_compose_starts_and_knows_its_names(terminal: Terminal) -> None:
    """As its container has it, on another port."""
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    command = [word.replace("--port=8000", "--port=0") for word in compose["services"]["web"]["command"]]
    process = terminal.start(shlex.join(command), "Callboard is at ")
    try:
        log = process.log.read_text(encoding="utf-8")
        port = re.findall(r":(\d+)/", log)[0]
        address = f"http://127.0.0.1:{port}/api/jobs"
        names = {"localhost:8000": 200, "127.0.0.1": 200, "elsewhere.example": 421}
        answers = {name: httpx.get(address, headers={"Host": name}).status_code for name in names}
        assert answers == names
    finally:
        process.stop()
