"""`callboard up` runs everything, restarts what dies, and leaves nothing behind, however it ends."""

import json
import os
import signal
import stat
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from callboard.commands.errors import CommandError
from callboard.commands.local.processes import Child
from callboard.commands.local.stack import LocalStack
from callboard.commands.services import NotStarted, Process
from tests.support.programs import fault, left, run, running
from tests.support.workers import wait_until

ACTOR = "measure_source"


def addresses(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / ".callboard" / "up.json").read_text())
    return found


def works(folder: Path) -> bool:
    """Whether an item that another process submits is worked on."""
    (folder / "some.py").write_text("x = 1\n")
    given = json.dumps(str(folder / "some.py")).encode()
    return run(folder, "submit", ACTOR, "--wait", given=given).returncode == 0


def children(pid: int, *words: str) -> list[int]:
    """The pids of a process's children with these words in their command line."""
    found = []
    for place in Path(f"/proc/{pid}/task").glob("*/children"):
        of_thread = list[str]()
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread has just ended
            of_thread = place.read_text().split()
        for child in of_thread:
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                line = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                found += [int(child)] if set(words) <= set(line) else []
    return found


def kill_a_worker(up: Process) -> None:
    """Kill what the first of its two workers runs, and see that `up` starts another one."""
    workers = children(up.pid, "dramatiq")
    assert len(workers) == 2
    for child in children(workers[0]):
        os.kill(child, signal.SIGKILL)
    assert wait_until(lambda: len(set(children(up.pid, "dramatiq")) - set(workers)) == 1, 300)


def test_up_runs_everything_restarts_what_is_killed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is killed itself, and on a machine that names no home. The second run uses the broker and the data
    that the killed one left behind, and ends in order.
    """
    monkeypatch.delenv("HOME", raising=False)
    with running(tmp_path, "up", "--processes", "2", "--threads", "2", until="Ctrl-C") as up:
        assert stat.S_IMODE((tmp_path / ".callboard" / "up.json").stat().st_mode) == 0o600
        assert works(tmp_path)
        assert wait_until(lambda: answers(tmp_path, "readyz"), 300)  # the broker must answer it within seconds
        assert "another `callboard up` runs in" in fault(tmp_path, "up")
        kill_a_worker(up)
        os.kill(children(up.pid, "serve")[0], signal.SIGKILL)
        assert wait_until(lambda: answers(tmp_path, "healthz"), 300)
        for name in ("worker 1", "the web app"):
            assert wait_until(lambda said=f"{name} ended unexpectedly": said in up.log.read_text(), 300)  # type: ignore[misc]
        os.kill(up.pid, signal.SIGKILL)
        assert wait_until(lambda: not left(tmp_path), 300), left(tmp_path)
    # On the same broker: until their heartbeats lapse, the killed workers keep those of another one out.
    with running(tmp_path, "up", "--processes", "1", until="Ctrl-C") as up:
        assert works(tmp_path)
        assert up.stop(300) == 0
    assert not (tmp_path / ".callboard" / "up.json").exists()
    ended = (tmp_path / ".callboard" / "worker-1.log").read_text()  # that of worker 2 is of the run that was killed
    assert "Stopping worker process" in ended
    assert "Killing" not in ended


def answers(folder: Path, path: str) -> bool:
    """Whether the web app answers, and does not refuse."""
    try:
        urllib.request.urlopen(addresses(folder)["web_url"] + path).close()
    except OSError:
        return False
    return True


def test_up_in_process_keeps_its_data(tmp_path: Path) -> None:
    with running(tmp_path, "up", "--in-process", until="Ctrl-C") as up:
        assert "broker: Dramatiq's in-process one, as asked for" in up.log.read_text()
        assert addresses(tmp_path)["amqp_url"] is None
        assert works(tmp_path)
        assert "only the worker with an in-process broker can sweep" in fault(tmp_path, "sweep")
        up.send(signal.SIGINT)
        assert wait_until(lambda: not up.running(), 300)
        assert up.kill() == 0
    with running(tmp_path, "up", "--in-process", until="Ctrl-C"):
        jobs = json.loads(run(tmp_path, "jobs", "--json").stdout)["jobs"]
        assert [job["succeeded"] for job in jobs] == [1]
        assert run(tmp_path, "verify").returncode == 0


def test_up_uses_the_services_that_the_environment_names(tmp_path: Path, environment: dict[str, str]) -> None:
    with running(tmp_path, "up", env=environment, until="Ctrl-C"):
        assert addresses(tmp_path)["amqp_url"] == environment["AMQP_URL"]
        assert works(tmp_path)
        assert not (tmp_path / ".callboard" / "postgres").exists()
        other = tmp_path / "other"
        other.mkdir()
        line = fault(other, "up", "--in-process", env=environment)
        assert line.startswith("callboard: the worker did not start: ")
        assert "this worker is on a broker within its process" in line


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"AMQP_URL": "amqp://guest:secret@127.0.0.1:1/"}, "can't reach RabbitMQ at 127.0.0.1:1: "),
        ({"AMQP_URL": "amqp://guest:secret@127.0.0.1:1/?heartbeat=often"}, "can't reach RabbitMQ at AMQP_URL: it "),
        ({"AMQP_URL": "http://somewhere/"}, "AMQP_URL must be an address like"),
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/none"}, "can't reach the database at 127.0.0.1:1/none"),
        ({"DATABASE_URL": "nonsense"}, "DATABASE_URL must be an address like"),
        ({"CALLBOARD_ACTORS": "nomodule"}, "CALLBOARD_ACTORS names 'nomodule', which can't be imported"),
    ],
)
def test_an_up_that_cannot_start_is_an_error_of_one_line(
    tmp_path: Path, environment: Mapping[str, str], env: Mapping[str, str], said: str
) -> None:
    line = fault(tmp_path, "up", env={**environment, **env})
    assert said in line
    assert "secret" not in line
    assert wait_until(lambda: not left(tmp_path), 300), left(tmp_path)


def test_a_child_that_ends_without_a_word_is_said_to_have_said_nothing(tmp_path: Path) -> None:
    child = Child("the child", tmp_path / "log", "ready", "keyword").start()
    with pytest.raises(NotStarted, match=r"^the child did not start: its log is empty \(its log: "):
        child.wait()


def test_up_without_rabbitmq_says_that_it_uses_the_in_process_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("callboard.commands.local.stack.installed", lambda: False)
    monkeypatch.delenv("AMQP_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    stack = LocalStack(tmp_path, processes=1, threads=1, port=0, in_process=False)
    with pytest.raises(CommandError), stack:
        pass
    assert stack.in_process
    assert "RabbitMQ isn't installed here and AMQP_URL isn't set" in capsys.readouterr().err


def test_sweep_publishes_waiting_items_and_ends_in_order(tmp_path: Path, environment: dict[str, str]) -> None:
    database = {"DATABASE_URL": environment["DATABASE_URL"]}
    job = run(tmp_path, "submit", ACTOR, env=database, given=b'"a.py"\n"b.py"\n').stdout.strip()
    with running(tmp_path, "sweep", env=environment, until="sweeping") as sweep:

        def published() -> bool:
            return bool(json.loads(run(tmp_path, "status", job, "--json", env=database).stdout)["queued"] == 2)

        assert wait_until(published, 300)
        assert sweep.stop(300) == 0


RELOADED = """
import time, dramatiq, callboard
callboard.install()

@dramatiq.actor(max_retries=0)
def slow(number):
    time.sleep(2 if VERSION == 1 else 0.02)  # so most items are left for the second
    return VERSION
"""


def results(folder: Path, job: str) -> list[Any]:
    """The results of a job's items that have succeeded, in order."""
    found = json.loads(run(folder, "items", job, "--state", "succeeded", "--limit", "500", "--json").stdout)
    return [item["result"] for item in found["items"]]


def test_up_replaces_workers_when_a_source_changes_and_loses_no_item(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    module = tmp_path / "reloaded.py"
    module.write_text(RELOADED.replace("VERSION", "1"))
    options = ("--reload", "--processes", "1", "--threads", "4")
    env = {**environment, "CALLBOARD_ACTORS": "reloaded"}
    with running(tmp_path, "up", *options, env=env, until="Ctrl-C") as up:
        given = "\n".join(map(str, range(200))).encode()
        job = run(tmp_path, "submit", "slow", given=given).stdout.strip()
        assert wait_until(lambda: results(tmp_path, job), 300)
        module.write_text("this is no Python")
        why = "names 'reloaded', which can't be imported: SyntaxError"
        assert wait_until(lambda: why in up.log.read_text(), 300), "the reason why a worker ended by itself"
        module.write_text(RELOADED.replace("VERSION", "2"))
        assert run(tmp_path, "watch", job).returncode == 0
        assert "reloaded.py changed" in up.log.read_text()
        status = json.loads(run(tmp_path, "status", job, "--json").stdout)
        assert {name: status[name] for name in ("succeeded", "failed", "retries", "crashes")} == {
            "succeeded": 200, "failed": 0, "retries": 0, "crashes": 0,
        }  # fmt: skip
        assert set(results(tmp_path, job)) == {1, 2}
        assert up.stop(300) == 0


def test_up_without_workers_runs_the_servers_only(tmp_path: Path, amqp_url: str) -> None:
    with running(tmp_path, "up", "--no-workers", env={"AMQP_URL": amqp_url}, until="Ctrl-C") as up:
        assert children(up.pid, "dramatiq") == []
        assert answers(tmp_path, "healthz")
        assert "none is alive" in run(tmp_path, "doctor", "--no-ping").stdout
        assert up.stop(300) == 0
    assert "in-process broker has none" in fault(tmp_path, "up", "--reload", "--in-process", code=2)
