"""An error of the database is read as a lost connection, or as something else."""

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from callboard.sql.errors import is_connection_lost, is_misconfigured


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
