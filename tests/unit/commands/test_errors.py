"""What a user reads of an error."""

import asyncio
import json
from contextlib import nullcontext
from typing import NoReturn

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from callboard.commands import database, doctor
from callboard.commands.errors import explain
from callboard.commands.main import main
from callboard.web.problems import problem_of


def test_a_statement_that_took_too_long_is_no_lost_connection() -> None:
    refused = psycopg.errors.QueryCanceled("canceling statement due to statement timeout\nCONTEXT: …")
    assert explain(refused) == "the database refused this: canceling statement due to statement timeout; try again"
    full = psycopg.errors.DiskFull("could not extend file: No space left on device")
    assert str(explain(full)).endswith("No space left on device; free space on the disk of PostgreSQL")
    assert str(explain(psycopg.OperationalError("server closed"))).startswith("the connection to the database was lost")
    assert explain(PoolTimeout("couldn't get a connection after 10.00 sec: Connection refused")) == (
        "no connection to the database: couldn't get a connection after 10.00 sec: Connection refused;"
        " start PostgreSQL, or correct DATABASE_URL"
    )


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.DuplicatePreparedStatement('prepared statement "_pg3_0" already exists'),
        psycopg.errors.InvalidSqlStatementName('prepared statement "_pg3_0" does not exist'),
    ],
)
def test_a_pooler_that_mixes_up_prepared_statements_is_no_bug(
    error: psycopg.Error, monkeypatch: pytest.MonkeyPatch
) -> None:
    advice = f"the pooler loses prepared statements: {error}; set CALLBOARD_PREPARE=off"
    assert explain(error) == advice

    def fail(_: object) -> NoReturn:
        raise error

    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1/none")
    monkeypatch.setattr(doctor, "connect", lambda _: nullcontext())
    monkeypatch.setattr(doctor, "_database", fail)
    *_, last = doctor.examine(None)
    assert f"{last.found}; {last.do}" == advice
    answer = asyncio.run(problem_of(None, error))
    assert (answer.status_code, json.loads(bytes(answer.body))["detail"].partition(": ")[2]) == (
        503, "set CALLBOARD_PREPARE=off",
    )  # fmt: skip


def test_a_connection_that_is_lost_within_a_command_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no server need be started, and no address corrected."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1/none")
    monkeypatch.setattr(database, "connect", lambda _: nullcontext())
    monkeypatch.setattr(database, "check", lambda _: None)
    with pytest.raises(psycopg.OperationalError, match="server closed") as caught, database.database():
        raise psycopg.OperationalError("server closed the connection unexpectedly")
    assert explain(caught.value) == (
        "the connection to the database was lost: server closed the connection unexpectedly; try again"
    )


@pytest.mark.parametrize(
    ("given", "option"),
    [
        ("items 1 --state failed --state skipped", "--state"),
        ("export 1 --format=csv --format=jsonl", "--format"),
        ("workers --state dead --state alive", "--state"),
        ("retry 1 --state failed --state skipped --error OSError --error KeyError", "--error"),
        ("token create --scope read --scope submit --tenant a --tenant b", "--tenant"),
    ],
)
def test_an_option_of_one_value_that_is_given_twice_is_refused(
    given: str, option: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
    assert main(given.split()) == 2
    assert f"callboard: {option} takes one value, and 2 were given (see" in capsys.readouterr().err
