"""An error of the database is read as a lost connection, or as something else."""

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from callboard.sql.errors import is_connection_lost


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
