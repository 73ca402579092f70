"""Services start, stop, survive a kill, run side by side, and end with the process that started them."""

import os
import pwd
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from callboard.commands.services import NotStarted, Process, Server, installed, wait_until
from callboard.commands.services.child_process import User
from callboard.commands.services.ports import free_ports
from tests.support.nodes import Node

HOLD = """
import signal, sys
from pathlib import Path
from callboard.commands.services import Server
with Server(Path(sys.argv[1])) as it:
    print("up", flush=True)
    signal.pause()
"""


def running(pattern: str) -> list[str]:
    """The command lines of live processes that hold `pattern`."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if pattern in line:
            lines.append(line)
    return lines


def child(tmp_path: Path, *command: str) -> Process:
    return Process(command, log=tmp_path / "log")


def test_a_user_without_a_name_is_told_that_postgresql_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container that runs as any number: it was a KeyError with a traceback."""

    def nobody_known(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody_known)
    with pytest.raises(NotStarted, match=r"has no name, .* add it to /etc/passwd, or set DATABASE_URL"):
        Server(tmp_path).start()


def test_a_process_that_ends_early_raises_its_log(tmp_path: Path) -> None:
    process = child(tmp_path, "sh", "-c", "echo no such thing; exit 3").start()
    with pytest.raises(NotStarted, match=r"sh ended before it was ready.*\n?no such thing"):
        process.wait_ready(lambda: False, 300)


def test_a_process_that_never_gets_ready_is_killed(tmp_path: Path) -> None:
    process = child(tmp_path, "sleep", "600").start()
    with pytest.raises(NotStarted, match="did not become ready in time"):
        process.wait_ready(lambda: False, 0.1)
    assert not process.running()


def test_a_process_that_ignores_its_signal_is_killed_with_its_children(tmp_path: Path) -> None:
    process = child(tmp_path, "sh", "-c", "trap '' TERM; sleep 611 & echo up; wait; wait").start()
    process.wait_ready(lambda: "up" in process.log.read_text(), 300)
    assert process.stop(timeout=0.1) == -signal.SIGKILL
    assert wait_until(lambda: not running("sleep 611"), 300)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
@pytest.mark.parametrize("reach", [True, False])
def test_a_process_with_reach_reads_where_only_root_can(tmp_path: Path, reach: bool) -> None:
    tmp_path.chmod(0o700)
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    nobody = pwd.getpwnam("nobody")
    command = ["sh", "-c", f"test -x {program} && {program} && ! test -w {tmp_path} && test $(id -u) != 0"]
    with tempfile.NamedTemporaryFile(dir="/tmp") as log:
        user = User(nobody.pw_uid, nobody.pw_gid, reach)
        process = Process(command, log=Path(log.name), user=user, cwd=Path("/")).start()
        assert wait_until(lambda: not process.running(), 300)
    assert (process.kill() == 0) == reach


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20


def test_postgres_keeps_its_data_and_url(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept ()")
        server.kill()
        url = server.start().url
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT FROM kept").fetchall() == []
            assert connection.info.server_version >= 180000
            found = connection.execute("SELECT lower('MÜLLER'), 'B' < 'a'").fetchone()
            assert found == ("müller", True), "case by Unicode, order by bytes"
    assert not running(str(tmp_path))


def test_postgres_takes_a_folder_of_any_name(tmp_path: Path) -> None:
    for name in ("a, b", "x" * 120, "Büro 日本"):
        with Server(tmp_path / name) as server, psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert not server.sockets.exists()


def test_postgres_refuses_a_folder_in_use(private_server: Server) -> None:
    with pytest.raises(NotStarted, match="lock file"), Server(private_server.folder):
        pass
    psycopg.connect(private_server.url).close()


def test_postgres_lets_no_other_user_in(tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        ident = tmp_path / "postgres" / "pg_ident.conf"
        ident.write_text('callboard "someone-else" postgres\n', encoding="utf-8")
        with psycopg.connect(server.url) as connection:
            connection.execute("SELECT pg_reload_conf()")
        assert wait_until(lambda: refused(server.url), 300)


def refused(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError as error:
        return "Peer authentication failed" in str(error)
    return False


def test_node_without_rabbitmq_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.commands.services.rabbitmq_programs.PLACES", ())
    monkeypatch.setenv("PATH", "/nowhere")
    assert not installed()
    with pytest.raises(NotStarted, match="AMQP_URL"):
        Node(tmp_path).start()


def test_node_that_cannot_boot_shows_its_log(tmp_path: Path) -> None:
    (tmp_path / "advanced.config").write_text("no Erlang term", encoding="ascii")
    with pytest.raises(NotStarted, match="failed_to_read_advanced_configuration"), Node(tmp_path):
        pass
    assert not running(str(tmp_path))


def test_a_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    for number in (signal.SIGKILL, signal.SIGTERM):
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=bare_environment()) as starter:
            assert starter.stdout
            assert starter.stdout.readline() == b"up\n"
            starter.send_signal(number)
        assert wait_until(lambda: not running(str(tmp_path)), 300)


def bare_environment() -> dict[str, str]:
    """A machine with an empty home."""
    return {name: value for name, value in os.environ.items() if name != "HOME"}
