"""What a process was running when it was killed is read by another process of its host."""

import errno
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from callboard.middleware.process import run_file
from callboard.middleware.process.run_file import RunFile

SCHEMA = "1764500000000000"
Fork = Callable[[Callable[[], RunFile]], int]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"callboard-runs-{os.getuid()}"


@pytest.fixture
def ours() -> Iterator[RunFile]:
    """The file of this process."""
    runs = RunFile()
    runs.open(SCHEMA, 1)
    yield runs
    runs.close()


@pytest.fixture
def fork() -> Iterator[Fork]:
    """Run a function in a child, which waits then; give its pid once it does."""
    children = []

    def start(function: Callable[[], RunFile]) -> int:
        end, said = os.pipe()
        child = os.fork()
        if not child:
            try:
                _runs = function()
                os.write(said, b".")
                signal.pause()
            finally:
                os._exit(1)
        children.append(child)
        os.close(said)
        with os.fdopen(end, "rb") as file:
            assert file.read(1) == b"."
        return child

    yield start
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def kill(child: int, *, reap: bool = True) -> None:
    """Kill a child, and wait until it is dead."""
    os.kill(child, signal.SIGKILL)
    os.waitid(os.P_PID, child, os.WEXITED | (0 if reap else os.WNOWAIT))


def worker(*attempts: tuple[int, int, int], schema: str = SCHEMA) -> Callable[[], RunFile]:
    """What a worker process does that has begun these attempts, and has ended the first."""

    def run() -> RunFile:
        runs = RunFile()
        runs.open(schema, 2)
        places = [runs.begin(*attempt) for attempt in attempts]
        runs.end(places[0])
        return runs

    return run


def test_what_a_killed_process_ran_is_found_by_another(ours: RunFile, fork: Fork) -> None:
    before = time.monotonic()
    child = fork(worker((7, 0, 1), (7, 1, 1), (2**62, 2**31 - 1, 3)))
    assert list(ours.dead()) == []
    kill(child)
    (dead,) = ours.dead()
    assert (dead.worker, dead.pid) == (2, child)
    assert [(run.job, run.item, run.attempt) for run in dead.running] == [(7, 1, 1), (2**62, 2**31 - 1, 3)]
    assert all(0 <= run.age <= time.monotonic() - before for run in dead.running)
    dead.path.unlink()
    assert list(ours.dead()) == []


def test_one_that_is_put_off_comes_again_later(ours: RunFile, fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(fork(worker((7, 0, 1))))
    (dead,) = ours.dead()
    ours.put_off(dead)
    assert list(ours.dead()) == []
    moment = time.monotonic() + run_file.LATER_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: moment)
    assert [one.path for one in ours.dead()] == [dead.path]


def test_one_that_its_parent_has_not_waited_for_is_dead(ours: RunFile, fork: Fork) -> None:
    child = fork(worker((7, 0, 1)))
    kill(child, reap=False)
    assert [dead.pid for dead in ours.dead()] == [child]
    os.waitpid(child, 0)


def test_a_process_lives_that_has_lost_its_lock(ours: RunFile, folder: Path, fork: Fork) -> None:
    """As by an actor that reads all temporary files: whoever closes the file ends the lock of its process."""

    def run() -> RunFile:
        runs = worker((7, 0, 1))()
        for path in folder.iterdir():
            path.read_bytes()
        return runs

    child = fork(run)
    assert list(ours.dead()) == []
    kill(child)
    assert [dead.pid for dead in ours.dead()] == [child]


def test_places_are_used_again_and_those_beyond_are_not_kept(ours: RunFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "RUNS", 2)
    runs = RunFile()
    runs.open(SCHEMA, 3)
    assert [runs.begin(1, item, 1) for item in range(3)] == [0, 1, None]
    runs.end(None)
    runs.end(1)
    assert runs.begin(1, 4, 1) == 1
    runs.close()


def test_without_its_folder_nobody_is_found_dead(ours: RunFile, folder: Path) -> None:
    shutil.rmtree(folder)
    assert list(ours.dead()) == []


def test_the_files_of_other_databases_are_left_alone(ours: RunFile, fork: Fork) -> None:
    kill(fork(worker((7, 0, 1), schema="1764500000000001")))
    assert list(ours.dead()) == []


def test_on_a_full_disk_nothing_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write_some(path: Path, content: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_some)
    runs = RunFile()
    runs.open(SCHEMA, 1)
    assert "are not recorded as crashes: [Errno 28] No space left on device" in caplog.text
    assert runs.begin(1, 1, 1) is None
    assert list(folder.iterdir()) == []


def test_a_process_that_ends_in_order_leaves_nothing(folder: Path) -> None:
    runs = RunFile()
    assert runs.begin(1, 1, 1) is None  # not opened
    runs.open(SCHEMA, 1)
    place = runs.begin(1, 1, 1)
    runs.close()
    runs.end(place)
    assert runs.begin(1, 1, 1) is None
    assert list(runs.dead()) == []
    assert not folder.exists()


def test_a_folder_that_another_process_deletes_meanwhile_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def deleted_first(path: Path, content: bytes) -> int:
        monkeypatch.setattr(Path, "write_bytes", write)
        folder.rmdir()
        return path.write_bytes(content)

    monkeypatch.setattr(Path, "write_bytes", deleted_first)
    runs = RunFile()
    runs.open(SCHEMA, 1)
    assert runs.begin(1, 1, 1) == 0
    runs.close()


def test_old_files_of_the_dead_are_deleted(folder: Path, fork: Fork) -> None:
    """Nobody asks for those of a database that is gone."""
    dead, _ = fork(worker((7, 0, 1), schema="1")), fork(worker((7, 0, 1), schema="2"))
    kill(dead)
    (folder / "new.1.2.3.4").touch()
    (folder / "other").touch()
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    runs = worker((7, 0, 1), schema="3")()
    assert sorted(path.name.partition(".")[0] for path in folder.iterdir()) == ["2", "3", "other"]
    runs.close()


def test_without_a_folder_of_its_own_nothing_is_kept(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else may have made one of that name, with links in it."""
    folder.symlink_to(tmp_path)
    runs = RunFile()
    with caplog.at_level(logging.WARNING, "callboard.worker"):
        runs.open(SCHEMA, 1)
    assert f"are not recorded as crashes: {folder} is not a folder of this user" in caplog.text
    assert runs.begin(1, 1, 1) is None
    assert list(runs.dead()) == []
