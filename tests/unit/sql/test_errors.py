"""An error of the database is read as a lost connection, or as something else."""

from types import SimpleNamespace

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from callboard.sql.errors import UserFunctionFailed, is_connection_lost, is_misconfigured, may_be_committed, of_users


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (psycopg.errors.AdminShutdown("terminating connection"), True),
        (psycopg.errors.CrashShutdown("a server process died"), True),
        (psycopg.OperationalError("the connection is closed"), True),
        (PoolTimeout("none came free"), False),
        (psycopg.errors.QueryCanceled("statement timeout"), False),
        (psycopg.errors.DeadlockDetected("deadlock"), False),
        (psycopg.DataError("a NUL"), False),
    ],
)
def test_a_lost_connection_is_told_from_other_errors(error: Exception, lost: bool) -> None:
    assert is_connection_lost(error) is lost


@pytest.mark.parametrize(
    ("error", "misconfigured"),
    [
        (psycopg.errors.UndefinedTable("no such table"), True),
        (psycopg.errors.InsufficientPrivilege("permission denied"), True),
        (psycopg.errors.ReadOnlySqlTransaction("read-only"), True),
        (psycopg.errors.RaiseException("a trigger of the user's refuses it"), False),
        (psycopg.errors.AssertFailure("assertion failed"), False),
        (psycopg.errors.TooManyRows("query returned more than one row"), False),
    ],
)
def test_what_somebody_has_to_repair_is_told_from_refused_data(error: Exception, misconfigured: bool) -> None:
    assert is_misconfigured(error) is misconfigured


@pytest.mark.parametrize(
    ("said", "unknown"),
    [
        ("server conn crashed?", True),
        ("query timeout", True),  # of the server
        ("query_timeout", False),
        ("query_wait_timeout", False),
        ("server shutting down", False),
        ("server login has been failing, try again later (server_login_retry)", False),
        ("server login failed: wrong password type", False),
        # Cut off.
        ("server login has been failing, cached error: remaining connection slots are reserved for roles with", False),
    ],
)
def test_what_pgbouncer_says_of_a_statement_that_got_no_server_is_known(said: str, *, unknown: bool) -> None:
    """By its versions 1.18 to 1.25: such a statement is not committed."""
    assert may_be_committed(psycopg.errors.ProtocolViolation(said)) is unknown


class Undefined(psycopg.errors.UndefinedTable):
    """An error with such a context."""

    def __init__(self, context: str) -> None:
        super().__init__("no such table")
        self._diag = SimpleNamespace(message_primary="no such table", context=context)

    @property
    def diag(self) -> psycopg.errors.Diagnostic:
        return self._diag  # type: ignore[return-value]


@pytest.mark.parametrize(
    "line",
    [
        "PL/pgSQL function audit() line 1 at SQL statement",
        "PL/pgSQL function app.audit(integer,text) line 1 at SQL statement",
        "PL/pgSQL-Funktion audit() Zeile 1 bei SQL-Anweisung",
        'PL/pgSQL-Funktion app."Prüfung"() Zeile 1 bei SQL-Anweisung',
        "fonction PL/pgSQL audit(), ligne 1 à instruction SQL",
        "PL/pgSQL関数audit()の1行目 - SQLステートメント",
        'PL/pgSQL 함수 "audit()" 의 1번째 SQL 구문',
        "audit() PL/pgSQL fonksiyonu, 1. satır, SQL deyimi içinde",
        'PL/Python function "audit"',
        "PL/Python-Funktion »audit«",
        'SQL function "audit" statement 1',
        "SQL-Funktion »audit« Anweisung 1",
        "fonction SQL «\u00a0audit\u00a0», instruction 1",
    ],
)
def test_a_function_of_the_users_is_found_in_a_context_of_any_language(line: str) -> None:
    found = of_users(Undefined(f'SQL statement "INSERT INTO audit_log VALUES (1)"\n{line}'))
    assert isinstance(found, UserFunctionFailed)
    assert str(found) == f"no such table; in {line}"


@pytest.mark.parametrize(
    "context",
    [
        "",
        'SQL statement "SELECT audit(1)"',
        "SQL-Anweisung »SELECT audit(1)«",
        'PL/pgSQL assignment "x := audit(1)"',
        'SQL function "count_outcomes" statement 1',
        "SQL-Funktion »count_outcomes« Anweisung 1",
        "PL/pgSQL-Funktion callboard.of_later(bigint) Zeile 1 bei SQL-Anweisung",
        "PL/pgSQL function inline_code_block line 1 at SQL statement",
    ],
)
def test_no_other_context_is_taken_for_a_function_of_the_users(context: str) -> None:
    error = Undefined(context)
    assert of_users(error) is error
