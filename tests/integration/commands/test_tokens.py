"""`callboard token`: makes, lists and revokes what lets somebody into the web app."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callboard.commands.main import main
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.writes import tokens
from tests.support.jobs import make_job

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, database_url: str
) -> Call:
    """Runs `callboard token …` on this test's database: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["token", *map(str, arguments)])
        done = capsys.readouterr()
        return code, done.out, done.err

    return run


def found(conn: Conn, secret: str) -> dict[str, Any] | None:
    return queries.run(conn, queries.token(tokens.digest(secret.strip()), ["api", "share", "link"]))


def test_a_token_is_printed_once_and_kept_as_a_hash(call: Call, conn: Conn) -> None:
    code, out, err = call("create", "ci", "--scope", "submit", "--scope", "read", "--tenant", "acme")
    assert code == 0
    assert out.startswith("cb_")
    assert out.count("\n") == 1
    assert "ci: read, submit" in err
    row = found(conn, out)
    assert row is not None
    assert (row["name"], row["tenant"], row["scopes"], row["expires_at"]) == ("ci", "acme", ["read", "submit"], None)
    stored = conn.execute("SELECT string_agg(t::text, '') FROM callboard.tokens AS t").fetchone()
    assert out.strip() not in str(stored)
    listed = json.loads(call("list", "--json")[1])
    assert [one["name"] for one in listed["tokens"]] == ["ci"]
    assert "cb_" not in call("list")[1]


def test_a_token_is_the_users_with_three_scopes_if_nothing_else_is_said(call: Call, conn: Conn) -> None:
    made = json.loads(call("create", "--expires", "30d", "--json")[1])
    assert made["token"].startswith("cb_")
    assert made["scopes"] == ["read", "submit", "control"]
    assert made["name"] == made["created_by"] != ""
    assert made["expires_at"] is not None


def test_a_link_leads_to_the_app_that_runs_here(call: Call, conn: Conn, tmp_path: Path) -> None:
    code, out, err = call("create", "--link")
    assert (code, out.startswith("/login?link=cb_")) == (0, True)
    assert "put the address of the web app before this path" in err
    (tmp_path / ".callboard").mkdir()
    (tmp_path / ".callboard" / "up.json").write_text('{"web_url": "http://127.0.0.1:5/"}', encoding="utf-8")
    made = json.loads(call("create", "--link", "--json")[1])
    assert made["link"] == f"http://127.0.0.1:5/login?link={made['token']}"
    assert made["scopes"] == ["read", "submit", "control", "admin"]
    assert made["expires_at"] is not None


def test_a_token_of_a_job_is_in_its_history(call: Call, conn: Conn) -> None:
    job = make_job(conn, 1)
    made = json.loads(call("create", "customer", "--job", job, "--json")[1])
    assert (made["kind"], made["job"], made["scopes"]) == ("share", job, ["read"])
    (noted,) = queries.run(conn, queries.actions(job))[0]
    assert (noted["action"], noted["via"], noted["detail"]["token"]) == ("share", "cli", made["id"])
    assert call("revoke", made["id"])[0] == 0
    assert queries.run(conn, queries.actions(job))[0][0]["action"] == "unshare"


def test_a_revoked_token_lets_nobody_in(call: Call, conn: Conn) -> None:
    made = [json.loads(call("create", "--json")[1]) for _ in range(2)]
    numbers = [one["id"] for one in made]
    assert call("revoke", *numbers)[:2] == (0, "revoked 2 tokens\n")
    assert [found(conn, one["token"]) for one in made] == [None, None]
    code, _, err = call("revoke", *numbers)
    assert (code, f"there is no token {numbers[0]}, {numbers[1]}" in err) == (1, True)
    assert call("list")[1] == "no tokens\n"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "--scope", "write"], 2, "must be one of read, submit, control, admin"),
        (["create", "--expires", "soon"], 2, "expires must be a span"),
        (["create", "--expires", "0s"], 2, "expires must be a span like"),
        (["create", ""], 2, "name must not be empty"),
        (["create", "--tenant", ""], 2, "tenant must not be empty"),
        (["create", "x" * 201], 2, "name must be a text of at most 200 characters"),
        (["create", "--job", "5"], 1, "there is no job 5"),
        (["create", "--job", "5", "--scope", "read"], 2, "omit --scope"),
        (["revoke", "x"], 2, "valid integer"),
        (["revoke"], 2, "TOKEN"),
    ],
)
def test_what_makes_no_sense_makes_no_token(call: Call, conn: Conn, arguments: list[str], code: int, said: str) -> None:
    answered, out, err = call(*arguments)
    assert (answered, out) == (code, "")
    assert said in err
    assert "Traceback" not in err
    assert conn.execute("SELECT count(*) FROM callboard.tokens").fetchone() == (0,)
