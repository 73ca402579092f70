"""Commands that show and operate: their output and their exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from callboard.commands.jobs import follow
from callboard.commands.services.child_process import Process, wait_until
from callboard.sql.pool import Conn, connect
from callboard.sql.reads.item_view import CHECKS
from callboard.sql.states import ITEM_STATES
from callboard.sql.writes import submission, tokens
from callboard.sql.writes.requests import Requester
from tests.support.jobs import MIXED, make_job, make_mixed_job, make_worker, record, run
from tests.support.programs import Call

CALLBOARD = Path(sys.executable).with_name("callboard")


def environment(database_url: str) -> dict[str, str]:
    """The variables of a command that runs as a process of its own."""
    return {**os.environ, "DATABASE_URL": database_url, "PYTHONUNBUFFERED": "1"}


def document(answer: tuple[int, str, str]) -> Any:
    """The JSON document of a command that succeeded."""
    code, out, err = answer
    assert (code, err) == (0, "")
    return json.loads(out)


def line(answer: tuple[int, str, str], code: int = 1) -> str:
    """The one error line of a command that failed."""
    assert answer[0] == code
    assert answer[2].startswith("callboard: ")
    assert answer[2].count("\n") == 1
    assert "Traceback" not in answer[2]
    return answer[2]


def test_status_prints_a_job_in_words_and_in_json(call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    found = document(call("status", job, "--json"))
    assert {state: found[state] for state in ITEM_STATES} == MIXED
    code, out, _ = call("status", job)
    assert code == 0
    assert "20 pending · 44 queued · 3 running · 3 retrying · 20 succeeded · 5 failed · 5 skipped" in out
    assert "30.0 % of 100" in out


def test_a_group_of_errors_is_shown_with_its_traceback_and_leads_to_its_items(call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    [group] = document(call("errors", job, "--json"))["errors"]
    assert document(call("errors", job, group["id"], "--json"))["traceback"] == "Traceback …"
    assert "Traceback …" in call("errors", job, group["id"])[1]
    code, _, err = call("errors", job, "none")
    assert (code, f"job {job} has no error group 'none'" in err) == (1, True)
    for error in (group["id"], "ValueError"):
        found = document(call("items", job, "--error", error, "--json"))["items"]
        assert [item["item"] for item in found] == [20, 21, 22, 23, 24]
    assert call("items", job, "--key", "none")[1] == "no items\n"


def test_jobs_are_listed_in_pages(call: Call, conn: Conn) -> None:
    older, newer = make_job(conn, 1, name="older"), make_job(conn, 1, name="newer")
    page = document(call("jobs", "--limit", 1, "--json"))
    assert ([job["id"] for job in page["jobs"]], page["next"]) == ([newer], newer)
    code, out, _ = call("jobs", "--after", newer)
    assert code == 0
    assert str(older) in out
    assert "newer" not in out
    assert call("jobs", "state:paused")[1] == "no jobs\n"
    assert [job["id"] for job in document(call("jobs", "is:open", "older", "--json"))["jobs"]] == [older]
    assert call("jobs", "--columns", "name,pending")[1].split() == [
        "name", "pending", "newer", "0", "older", "0",
    ]  # fmt: skip
    assert "'odd' is not a column; known are id, name" in line(call("jobs", "--columns", "odd"), 2)
    code, _, err = call("jobs", "state:odd")
    assert code == 2
    assert "state:odd is no word of a search; there are state:STATE, actor:" in err


def test_jobs_are_watched_until_ctrl_c(call: Call, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    job, waits = make_job(conn, 4), list[float]()

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt
        record(conn, job, {"succeeded": [0]})

    monkeypatch.setattr("callboard.commands.jobs.follow.time.sleep", wait)
    code, out, _ = call("jobs", "--watch", "--columns", "progress")
    assert (code, out.split()) == (0, ["progress", "0.0", "%", "progress", "25.0", "%"])
    assert "--watch shows a table" in line(call("jobs", "-w", "--json"), 2)


def test_a_dry_run_says_how_many_items_and_changes_nothing(call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    before = document(call("status", job, "--json"))
    assert call("retry", job, "--dry-run")[1] == "5 items would get another attempt\n"
    assert document(call("retry", job, "--state", "skipped", "--dry-run", "--json")) == {"items": 5}
    assert document(call("retry", job, "--item", 20, "--dry-run", "--json")) == {"items": 1}
    assert call("retry", job, "--item", 20, "--item", 100) == (
        1, "", f"callboard: there is no item 100 of job {job}: its items are numbered from 0, and it has 100\n"
    )  # fmt: skip
    assert call("cancel", job, "--dry-run")[1] == "67 items would never start\n"
    after = document(call("status", job, "--json"))
    assert [after[state] for state in ITEM_STATES] == [before[state] for state in ITEM_STATES]
    done = make_job(conn, 0)
    assert "there is nothing left to cancel" in line(call("cancel", done, "--dry-run"))


def test_jobs_items_errors_and_workers_are_listed(call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    items = document(call("items", job, "--state", "failed", "--json"))
    assert [item["item"] for item in items["items"]] == [20, 21, 22, 23, 24]
    assert "ValueError: not a number" in call("items", job, "--state", "failed")[1]
    (error,) = document(call("errors", job, "--json"))["errors"]
    assert (error["type"], error["count"]) == ("ValueError", 8)
    assert "shop/prices.py:88" in call("errors", job)[1]
    (worker,) = document(call("workers", "--json"))["workers"]
    assert worker["state"] == "alive"
    assert "backstage" in call("workers")[1]
    assert re.search(r"mixed +running +███░{7} +30.0 % +100 +5 ", call("jobs")[1])


def test_two_releases_at_once_are_listed_as_such(call: Call, conn: Conn) -> None:
    for release in ("2026.11", "2026.12"):
        make_worker(conn, release=release)
    listed = document(call("workers", "--json"))["workers"]
    assert [worker["release"] for worker in listed] == ["2026.12", "2026.11"]
    assert re.search(r"2026\.12.*\n.*2026\.11", call("workers")[1])


def test_items_are_listed_with_their_progress(call: Call, conn: Conn) -> None:
    job = make_job(conn, 3)
    run(conn, job, [0], progress=(1200.0, 5000.0))
    run(conn, job, [1], progress=(2.4999951, None))
    items = document(call("items", job, "--json"))["items"]
    told = [{"done": 1200, "total": 5000}, {"done": 2.4999951, "total": None}, None]
    assert [item["progress"] for item in items] == told
    out = call("items", job)[1]
    assert "1,200 of 5,000" in out
    assert re.search(r" 2\.5 ", out)


def test_watch_ends_with_1_if_an_item_or_the_job_failed(call: Call, conn: Conn) -> None:
    good, bad, part = make_job(conn, 2), make_job(conn, 2), make_job(conn, 2, sealed=False)
    record(conn, good, {"succeeded": [0], "skipped": [1]})
    record(conn, bad, {"succeeded": [0], "failed": [1]})
    record(conn, part, {"succeeded": [0, 1]})
    submission.fail_submission(conn, part, "the submission broke off")
    assert [call("watch", *jobs)[0] for jobs in ((good,), (bad,), (part,), (good, bad))] == [0, 1, 1, 1]
    code, out, _ = call("watch", bad, "--json")
    assert (code, json.loads(out)["failed"]) == (1, 1)
    assert document(call("watch", good, "--json"))["state"] == "completed"


def test_watch_follows_a_job_to_its_end(database_url: str, conn: Conn, tmp_path: Path) -> None:
    job = make_job(conn, 4)
    log = tmp_path / "watch.log"
    watch = Process([CALLBOARD, "watch", str(job)], log=log, env=environment(database_url)).start()
    try:
        assert wait_until(lambda: "0.0 %" in log.read_text(encoding="utf-8"), 300)
        record(conn, job, {"succeeded": [0, 1]})
        assert wait_until(lambda: "50.0 %" in log.read_text(encoding="utf-8"), 300)
        record(conn, job, {"succeeded": [2, 3]})
        assert wait_until(lambda: not watch.running(), 300)
        assert "completed" in log.read_text(encoding="utf-8")
    finally:
        assert watch.kill() == 0


def test_several_jobs_are_watched_a_line_each(call: Call, conn: Conn) -> None:
    assert "no job is open" in line(call("watch"))
    first, second = make_job(conn, 4, name="first"), make_job(conn, 4, name="second")
    record(conn, first, {"succeeded": range(4)})
    record(conn, second, {"failed": [0]})
    code, out, err = call("watch", first, "@latest", "--timeout", "0.6")
    assert code == 1
    assert f"{first} first completed 100 %" in out
    assert f"{second} second running 25.0 % of 4" in out
    again = f"jobs {first} {second} continue; `callboard watch {first} {second}` follows them again"
    assert err == f"callboard: after 0.6 s {again}\n"
    assert call("watch", "--timeout", "0")[2] == f"callboard: after 0 s {again}\n".replace(
        f"jobs {first} {second} continue; `callboard watch {first} {second}` follows them",
        f"job {second} continues; `callboard watch {second}` follows it",
    )


def test_ctrl_c_ends_the_watching_and_says_that_the_job_goes_on(database_url: str, conn: Conn, tmp_path: Path) -> None:
    job = make_job(conn, 4)
    (tmp_path / ".callboard").mkdir()
    (tmp_path / ".callboard" / "up.json").write_text('{"web_url": "http://127.0.0.1:8000/"}')
    command = [str(CALLBOARD), "watch", str(job)]
    pipe = subprocess.PIPE
    watch = subprocess.Popen(
        command, env={**os.environ, **environment(database_url)}, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True
    )
    assert watch.stdout is not None
    assert "0.0 %" in watch.stdout.readline()
    watch.send_signal(signal.SIGINT)
    _, err = watch.communicate(timeout=300)
    assert watch.returncode == 1
    assert err == (
        f"callboard: job {job} continues; `callboard watch {job}` follows it again; see also http://127.0.0.1:8000/jobs/{job}\n"
    )


def test_ctrl_c_ends_a_command_with_130(call: Call, conn: Conn, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    job = make_job(conn, 1)
    monkeypatch.setattr("callboard.sql.reads.exports.json_lines", interrupted)
    assert call("export", job) == (130, "", "")


def test_a_job_that_is_not_shown_live_has_a_line_now_and_then(
    call: Call, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [0.0]
    clock = SimpleNamespace(monotonic=lambda: times[-1], sleep=lambda seconds: times.append(times[-1] + seconds))
    monkeypatch.setattr(follow, "time", clock)
    make_job(conn, 4)
    assert len(call("watch", "@latest", "--timeout", "35")[1].splitlines()) == 4


def test_a_job_is_shown_on_one_screen_with_what_to_type_next(call: Call, conn: Conn) -> None:
    assert "there is no job yet" in line(call("status", "@latest"))
    job = make_mixed_job(conn)
    code, out, _ = call("status", "@latest")
    assert code == 0
    assert "5 failed: ValueError: not a number: <b>12,5</b>" in out
    assert re.search(r"item 40 for \d+ s on worker \d+, page 3", out)
    words = ("errors", "retry", "watch", "pause")
    assert out.splitlines()[-1] == " · ".join(f"callboard {word} {job}" for word in words)
    assert "@latest" in line(call("status", "latest"), 2)


def test_the_version_is_printed_whatever_the_settings(call_alone: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_KEEP", "odd")
    assert call_alone("--version") == (0, f"callboard {version('callboard')}\n", "")


def test_the_shell_can_complete(call_alone: Call) -> None:
    assert "--install-completion" in call_alone("--help")[1]
    assert "@latest" in call_alone("--help")[1]


def test_verify_ends_with_1_on_any_drift(call: Call, conn: Conn) -> None:
    job = make_mixed_job(conn)
    assert call("verify")[:2] == (0, f"no drift: 1 job, {len(CHECKS)} checks each\n")
    assert document(call("verify", "@latest", "--json"))["drift"] == []
    conn.execute("UPDATE callboard.jobs SET failed = failed + 1 WHERE id = %s", (job,))
    code, out, _ = call("verify", "--json")
    assert code == 1
    assert [(d["job"], d["check"], d["stored"], d["counted"]) for d in json.loads(out)["drift"]] == [
        (job, "failed", 6, 5)
    ]
    assert call("verify", job)[0] == 1
    conn.execute("UPDATE callboard.jobs SET failed = failed - 1 WHERE id = %s", (job,))


@pytest.mark.parametrize("command", ["status", "watch", "items", "errors", "verify"])
def test_an_unknown_job_is_an_error_of_one_line(call: Call, command: str) -> None:
    assert "no job 5" in line(call(command, 5))


@pytest.mark.parametrize(
    "arguments", [("status",), ("status", "x"), ("status", "-1"), ("items", "1", "--state", "odd"), ("nope",)]
)
def test_wrong_usage_is_an_error_of_one_line_and_exit_code_2(call: Call, arguments: tuple[str, ...]) -> None:
    known = arguments[0] in ("status", "items")
    assert f"(see `callboard{f' {arguments[0]}' if known else ''} --help`)" in line(call(*arguments), 2)


def test_a_missing_address_is_an_error(call_alone: Call) -> None:
    assert "DATABASE_URL is not set and no `callboard up` is running here" in line(call_alone("jobs"))


def test_the_address_of_a_running_up_is_used(call_alone: Call, database_url: str, tmp_path: Path) -> None:
    left = tmp_path / ".callboard" / "up.json"
    left.parent.mkdir()
    left.write_text(json.dumps({"database_url": database_url}), encoding="utf-8")
    assert document(call_alone("jobs", "--json")) == {"jobs": [], "next": None}


def test_an_unreachable_database_is_an_error_without_the_password(
    call_alone: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://anna:hunter2@127.0.0.1:1/shop")
    said = line(call_alone("jobs"))
    assert "127.0.0.1:1/shop" in said
    assert "start PostgreSQL" in said
    assert "hunter2" not in said


def test_an_invalid_address_is_not_repeated(call_alone: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "anna:hunter2@")
    assert "hunter2" not in line(call_alone("jobs"))


def test_migrate_makes_the_schema_and_again_changes_nothing(
    call_alone: Call, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert "callboard migrate" in line(call_alone("jobs"))
    assert document(call_alone("migrate", "--json"))["applied"]
    assert call_alone("migrate")[:2] == (0, "the schema is up to date\n")


def test_a_schema_that_is_ahead_by_a_breaking_step_is_refused(call: Call, conn: Conn) -> None:
    conn.execute("INSERT INTO callboard.migrations (number, name, breaking) VALUES (9998, 'more', false)")
    code, _, err = call("jobs")
    assert code == 0
    assert "ahead" in err
    conn.execute("INSERT INTO callboard.migrations (number, name, breaking) VALUES (9999, 'other', true)")
    assert "ahead" in line(call("jobs"))


def test_config_lists_every_setting_without_secrets(call_alone: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://anna:hunter2@db/shop")
    monkeypatch.setenv("CALLBOARD_WEBHOOK_SECRET", "hunter2")
    found = {row["name"]: row for row in document(call_alone("config", "--json"))["settings"]}
    assert found["DATABASE_URL"]["value"] == "postgresql://anna:***@db/shop"
    assert found["CALLBOARD_WEBHOOK_SECRET"]["value"] == "***"
    assert found["CALLBOARD_PREPARE"]["default"] == "on"
    assert "hunter2" not in call_alone("config")[1]


def test_config_shows_the_addresses_of_a_running_up(call_alone: Call, tmp_path: Path) -> None:
    left = tmp_path / ".callboard" / "up.json"
    left.parent.mkdir()
    urls = {"database_url": "postgresql:///board", "amqp_url": "amqp://anna:hunter2@127.0.0.1/", "web_url": "http://x"}
    left.write_text(json.dumps(urls), encoding="utf-8")
    found = {row["name"]: row["value"] for row in document(call_alone("config", "--json"))["settings"]}
    assert (found["DATABASE_URL"], found["AMQP_URL"]) == ("postgresql:///board", "amqp://anna:***@127.0.0.1/")


def test_serve_refuses_a_public_address_where_nobody_can_log_in(call: Call) -> None:
    said = line(call("serve", "--host", "0.0.0.0"), 2)  # noqa: S104
    assert "`callboard token create`" in said
    assert "--open-to-everyone" in said


def test_serve_takes_a_prefix_that_is_a_path(call: Call) -> None:
    for wrong in ("", "/", "tools", "/a//b", "/a b", "http://x/y", "/a?b"):
        code, _, error = call("serve", "--port", "0", "--root-path", wrong)
        assert (code, "must be a path like /tools/callboard" in error) == (2, True), wrong


def test_serve_says_its_prefix(database_url: str, tmp_path: Path) -> None:
    with connect(database_url) as conn:
        token, _ = tokens.create(conn, Requester("cli"), name="anna", scopes=["read"])
    log = tmp_path / "serve.log"
    options = ["--port", "0", "--root-path", "/tools/callboard/"]
    serve = Process([CALLBOARD, "serve", *options], log=log, env=environment(database_url)).start()
    try:
        assert wait_until(lambda: "http://" in log.read_text(encoding="utf-8"), 300)
        found = re.search(r"(http://\S+/)$", log.read_text(encoding="utf-8").strip())
        assert found, "no link: its cookie would be for the path at the proxy"
        sent = httpx.post(f"{found[1]}login", data={"token": token}).headers["set-cookie"]
        assert "Path=/tools/callboard;" in sent
    finally:
        serve.kill()


def test_serve_serves_until_it_is_interrupted(database_url: str, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    serve = Process([CALLBOARD, "serve", "--port", "0"], log=log, env=environment(database_url)).start()
    try:
        assert wait_until(lambda: "http://" in log.read_text(encoding="utf-8"), 300)
        found = re.search(r"(http://\S+)login\?link=(\S+)", log.read_text(encoding="utf-8"))
        assert found
        assert httpx.get(f"{found[1]}api/jobs").status_code == 401
        with httpx.Client(base_url=found[1], follow_redirects=True) as browser:
            assert browser.post("login", data={"link": found[2]}).url == found[1]
            assert browser.get("api/jobs").json() == {"jobs": [], "next": None}
        os.kill(serve.pid, signal.SIGINT)
        assert wait_until(lambda: not serve.running(), 300)
        assert "Traceback" not in log.read_text(encoding="utf-8")
    finally:
        serve.kill()
