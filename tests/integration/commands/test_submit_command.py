"""`callboard submit`: each line is an item, a file with a bad line stores nothing, each error is one line."""

import json
import signal
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from callboard.commands.services import wait_until
from callboard.middleware.submission.submission import LARGE_CHUNK_ITEMS
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from tests.support.forked import ForkedProcess
from tests.support.programs import COMMAND, PEAK, fault, run
from tests.support.programs import environment as variables
from tests.support.workers import StartWorker

Env = dict[str, str]
ACTOR = "measure_source"


@pytest.fixture
def env(database_url: str) -> Env:
    """A database, and no broker: what is stored stays as it is."""
    return {"DATABASE_URL": database_url}


def arguments_of(env: Env, job: int) -> list[tuple[Any, Any]]:
    with connect(env["DATABASE_URL"]) as conn:
        found, _ = queries.run(conn, queries.items(job))
    return [(item["args"], item["kwargs"]) for item in found]


def jobs(env: Env) -> list[dict[str, Any]]:
    with connect(env["DATABASE_URL"]) as conn:
        return queries.run(conn, queries.jobs())[0]


def loose(env: Env, tmp_path: Path) -> Env:
    """With an actor, `loose`, that takes any arguments."""
    (tmp_path / "any.py").write_text("import dramatiq\n\n@dramatiq.actor\ndef loose(*args, **named): ...\n")
    return {**env, "CALLBOARD_ACTORS": "any"}


def test_object_array_and_scalar_are_items(env: Env, tmp_path: Path) -> None:
    lines = '\ufeff{"path": "a"}\n\n["b", 2]\n"c"\r\n12345678901234567890123\nnull\n[]'
    (tmp_path / "items.jsonl").write_text(lines, encoding="utf-8", newline="")
    done = run(tmp_path, "submit", "loose", "items.jsonl", env=loose(env, tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    expected: list[tuple[list[Any], dict[str, Any]]] = [
        ([], {"path": "a"}),
        (["b", 2], {}),
        (["c"], {}),
        ([12345678901234567890123], {}),
        ([None], {}),
        ([], {}),
    ]
    assert arguments_of(env, int(done.stdout)) == expected


def test_csv_rows_are_items_by_header(env: Env, tmp_path: Path) -> None:
    (tmp_path / "items.CSV").write_bytes('path,note\r\na,"two\nlines"\r\n\r\n"b","é"\r\n'.encode())
    done = run(tmp_path, "submit", "loose", "items.CSV", env=loose(env, tmp_path))
    expected: list[tuple[list[Any], dict[str, str]]] = [
        ([], {"path": "a", "note": "two\nlines"}),
        ([], {"path": "b", "note": "é"}),
    ]
    assert arguments_of(env, int(done.stdout)) == expected


def test_items_are_read_from_standard_input_in_the_given_format(env: Env, tmp_path: Path) -> None:
    for arguments in (["-", "--format", "csv"], ["--format", "csv"], ["/dev/stdin", "--format", "csv"]):
        done = run(tmp_path, "submit", ACTOR, *arguments, env=env, given=b"path\nx.py\n")
        assert arguments_of(env, int(done.stdout)) == [([], {"path": "x.py"})]


def test_options_reach_the_job(env: Env, tmp_path: Path) -> None:
    options = [
        "--name",
        "a name",
        "--key",
        "k",
        "--metadata",
        '{"a": [1]}',
        "--tenant",
        "t",
        *(
            "--priority",
            "-3",
            "--max-failures",
            "5%",
            "--concurrency",
            "5",
            "--concurrency-by",
            "path=2",
            "--lanes",
            "5",
        ),
        *("--rate", "10/s", "--delay", "1h", "--deadline", "2h", "--keep", "7d"),
    ]
    given = b'{"path": "a"}\n{"path": "b"}\n{"path": "a"}\n'
    first = run(tmp_path, "submit", ACTOR, *options, "--item-key", "path", "--json", env=env, given=given)
    job = json.loads(first.stdout)
    assert (job["name"], job["key"], job["tenant"], job["total"]) == ("a name", "k", "t", 2)
    assert job["metadata"] == {"a": [1]}
    delayed, late = (datetime.fromisoformat(job["limits"].pop(name)) for name in ("at", "deadline"))
    assert timedelta(minutes=50) < late - delayed < timedelta(minutes=70)
    assert job["limits"] == {
        "priority": -3, "max_failures": "5%", "concurrency": 5, "concurrency_by": "path=2", "lanes": 5,
        "rate": "10/s", "keep": "7d",
    }  # fmt: skip
    again = run(tmp_path, "submit", ACTOR, *options, "--item-key", "path", env=env, given=given)
    assert int(again.stdout) == job["id"]
    assert len(jobs(env)) == 1


@pytest.mark.parametrize(
    ("form", "lines", "said"),
    [
        ("jsonl", b'"ok"\n\n{nope}\n', "line 3: not valid JSON"),
        ("jsonl", b'"ok"\nNaN\n', "line 2: not valid JSON"),
        ("jsonl", b'"ok"\n1e999\n', "line 2: not valid JSON"),
        ("jsonl", b'"caf\xe9"\n', "line 1: not UTF-8: give the file's encoding"),
        ("jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("jsonl", b'"ok"\n"' + b"x" * 1_100_000 + b'"\n"ok"\n', "line 2: more than the 1,048,576 bytes"),
        ("csv", b'path\n"x"y\n', "line 2: not valid CSV"),
        ("csv", b"Path\nx\n", "line 2: measure_source has no argument 'Path' and needs 'path'"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_stored(
    env: Env, tmp_path: Path, form: str, lines: bytes, said: str
) -> None:
    line = fault(tmp_path, "submit", ACTOR, "--format", form, env=env, given=lines)
    assert "nothing was stored, because the file has 1 bad line: " in line
    assert said in line
    assert jobs(env) == []


def test_skip_bad_leaves_bad_lines_out_and_names_them(env: Env, tmp_path: Path) -> None:
    lines = b'"a"\n' + b"bad\n" * 12 + b'"b"\n'
    done = run(tmp_path, "submit", ACTOR, "--skip-bad", env=env, given=lines)
    assert arguments_of(env, int(done.stdout)) == [(["a"], {}), (["b"], {})]
    assert "skipped 12 bad lines: line 2: " in done.stderr
    assert done.stderr.endswith(" and 2 more\n")


def test_a_file_without_items_makes_a_job_that_is_over_and_says_so(env: Env, tmp_path: Path) -> None:
    """The program that was to write the items may have failed."""
    done = run(tmp_path, "submit", ACTOR, env=env, given=b"\n")
    assert done.stderr == "callboard: the file has no items, so the job completes at once\n"
    assert arguments_of(env, int(done.stdout)) == []


def test_a_line_without_the_item_key_is_bad(env: Env, tmp_path: Path) -> None:
    given = b'{"path": "a"}\n"b"\n{"other": 1}\n'
    line = fault(tmp_path, "submit", ACTOR, "--item-key", "path", env=env, given=given)
    assert "line 2: it has no field 'path', which --item-key names; line 3: " in line


def test_csv_header_must_name_each_column_once(env: Env, tmp_path: Path) -> None:
    for header in (b"a,,b\n", b"a,a\n"):
        said = fault(tmp_path, "submit", ACTOR, "--format", "csv", env=env, given=header)
        assert "line 1: each column of the header" in said


@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        (["nobody"], "no actor 'nobody': import its module (CALLBOARD_ACTORS)", 1),
        ([ACTOR, "missing.jsonl"], "can't read missing.jsonl: No such file", 1),
        ([ACTOR, "."], "can't read .: Is a directory", 1),
        ([ACTOR, "--format", "xml"], "must be one of jsonl, csv, not 'xml'", 2),
        ([ACTOR, "--metadata", "[1]"], "must be a JSON object", 2),
        ([ACTOR, "--metadata", '{"a": "\\u0000"}'], "metadata must be a dict of values", 2),
        ([ACTOR, "--priority", "9999999999"], "--priority", 2),
        ([ACTOR, "--rate", "10"], "rate must be like 10/s", 2),
        ([ACTOR, "--delay", "soon"], "delay must be a time with its zone", 2),
        ([ACTOR, "--on-fail", "ftp://x"], "a webhook's URL must be like", 2),
        ([], "Missing argument 'ACTOR' (see `callboard submit --help`)", 2),
    ],
)
def test_a_refused_submission_is_an_error_of_one_line(
    env: Env, tmp_path: Path, arguments: list[str], said: str, code: int
) -> None:
    assert said in fault(tmp_path, "submit", *arguments, env=env, given=b'"a"\n', code=code)
    assert jobs(env) == []


@pytest.mark.parametrize("does", ["RAISE 'under audit'", "RETURN NULL", "PERFORM * FROM no_table"])
def test_a_submission_that_a_trigger_of_the_users_refuses_says_so(env: Env, tmp_path: Path, does: str) -> None:
    """None of its items is counted that is not there."""
    with connect(env["DATABASE_URL"]) as conn:
        conn.execute(f"CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does}; END $$".encode())
        conn.execute("CREATE TRIGGER audit BEFORE INSERT ON callboard.items FOR EACH ROW EXECUTE FUNCTION audit()")
    said = "a function of this database refuses it: "
    said += "a trigger keeps rows out of callboard.items, as one that returns NULL does" if "NULL" in does else ""
    assert said in fault(tmp_path, "submit", ACTOR, env=env, given=b'"a"\n', code=1)
    assert [(job["state"], job["total"]) for job in jobs(env)] == [("failed", 0)]


def test_a_submission_that_cant_be_marked_as_broken_off_says_so_in_a_line(env: Env, tmp_path: Path) -> None:
    audit = "FOR EACH ROW EXECUTE FUNCTION audit()"
    with connect(env["DATABASE_URL"]) as conn:
        conn.execute("CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'audit'; END $$")
        conn.execute(f"CREATE TRIGGER audit BEFORE INSERT ON callboard.items {audit}".encode())
        conn.execute(f"CREATE TRIGGER audit BEFORE UPDATE OF reason ON callboard.jobs {audit}".encode())
    done = run(tmp_path, "submit", ACTOR, env=env, given=b'"a"\n')
    told, said = done.stderr.splitlines()
    assert "can't be marked as broken off now, and will be later" in told
    assert said.startswith("callboard: a function of this database refuses it: audit")


def test_key_of_another_actors_job_is_refused(env: Env, tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text("import dramatiq\n\n@dramatiq.actor\ndef other(): ...\n")
    env = {**env, "CALLBOARD_ACTORS": "others"}
    assert run(tmp_path, "submit", "other", "--key", "k", env=env).returncode == 0
    said = fault(tmp_path, "submit", ACTOR, "--key", "k", env=env, code=2)
    assert "which was submitted with other options (actor): take another key, or pass --key-reuse" in said
    given = tmp_path / "letters.jsonl"
    given.write_text('"a"\n')
    made = run(tmp_path, "submit", ACTOR, str(given), "--key", "k2", env=env).stdout
    assert run(tmp_path, "submit", ACTOR, str(given), "--key", "k2", "--key-reuse", env=env).stdout == made


def test_actors_module_that_cannot_be_imported(env: Env, tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("1 / 0\n")
    said = fault(tmp_path, "submit", ACTOR, env={**env, "CALLBOARD_ACTORS": "wrong"})
    assert "CALLBOARD_ACTORS names 'wrong', which can't be imported: ZeroDivisionError" in said


def test_unreachable_broker_is_a_warning(env: Env, tmp_path: Path) -> None:
    env = {**env, "AMQP_URL": "amqp://127.0.0.1:1/"}
    done = run(tmp_path, "submit", ACTOR, env=env, given=b'"a"\n')
    assert done.returncode == 0
    assert len(arguments_of(env, int(done.stdout))) == 1
    (warning,) = done.stderr.splitlines()
    assert "publishing is held up" in warning


#: A submitter whose first chunk never gets an answer of the database.
FROZEN = """
import threading
from pathlib import Path
import dramatiq
from callboard.sql.writes import submission

@dramatiq.actor
def loose(number): ...

def waits(*_, **__):
    Path("frozen").touch()
    threading.Event().wait()

submission.store_chunk = waits
"""


def test_a_second_ctrl_c_ends_a_submission_that_waits_for_the_database(env: Env, tmp_path: Path) -> None:
    (tmp_path / "frozen_store.py").write_text(FROZEN)
    (tmp_path / "items.jsonl").write_text("1\n" * LARGE_CHUNK_ITEMS)
    command, log = [*COMMAND, "submit", "loose", "items.jsonl"], tmp_path / "log"
    given = variables({**env, "CALLBOARD_ACTORS": "frozen_store"})
    process = ForkedProcess(command, log=log, env=given, cwd=tmp_path).start()
    try:
        assert wait_until((tmp_path / "frozen").exists, 300)
        process.send(signal.SIGINT)
        assert wait_until(log.read_text, 300), "the first one says nothing"
        process.send(signal.SIGINT)
        assert process.child is not None
        assert process.child.wait(300) == -signal.SIGINT
    finally:
        process.kill()
    assert log.read_text() == "callboard: stopping when the database answers; Ctrl-C again stops at once\n"


def test_unreachable_database_and_missing_schema(empty_database_url: str, tmp_path: Path) -> None:
    away = {"DATABASE_URL": "postgresql://127.0.0.1:1/none"}
    assert "can't reach the database at 127.0.0.1:1/none" in fault(tmp_path, "submit", ACTOR, env=away)
    assert "DATABASE_URL is not set" in fault(tmp_path, "submit", ACTOR)
    behind = fault(tmp_path, "submit", ACTOR, env={"DATABASE_URL": empty_database_url})
    assert "callboard migrate" in behind


def test_wait_exits_with_0_only_if_every_item_succeeded_or_was_skipped(
    environment: Env, worker: StartWorker, tmp_path: Path
) -> None:
    worker("callboard.actors")
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").touch()
    well = json.dumps(str(tmp_path / "good.py")) + "\n" + json.dumps(str(tmp_path / "notes.txt"))
    done = run(tmp_path, "submit", ACTOR, "--wait", env=environment, given=well.encode())
    assert done.returncode == 0
    assert "1 succeeded · 1 skipped" in done.stdout
    ill = json.dumps(str(tmp_path / "gone.py")).encode()
    done = run(tmp_path, "submit", ACTOR, "--wait", "--json", env=environment, given=ill)
    assert done.returncode == 1
    assert json.loads(done.stdout)["failed"] == 1
    empty = run(tmp_path, "submit", ACTOR, "--wait", "--json", env=environment)
    assert (empty.returncode, json.loads(empty.stdout)["state"]) == (0, "completed")


SUBMIT = f"""
{PEAK}
from callboard.commands.main import main
assert main() == 0
print(peak())
"""


def test_memory_does_not_grow_with_the_file(env: Env, tmp_path: Path) -> None:
    with (tmp_path / "many.jsonl").open("w") as file:
        file.writelines(f'{{"path": "/some/where/file-{n}.py"}}\n' for n in range(200_000))
    done = subprocess.run(
        [sys.executable, "-c", SUBMIT, "submit", ACTOR, str(tmp_path / "many.jsonl")],
        env=variables(env),
        capture_output=True,
        check=True,
    )
    assert jobs(env)[0]["total"] == 200_000
    assert int(done.stdout.split()[-1]) < 150
