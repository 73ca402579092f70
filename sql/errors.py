"""What an error of the database means for the write that it struck."""

import psycopg
from psycopg_pool import PoolTimeout

#: The data is to blame: SQLSTATE classes 22, 23 and 54, or a value that can't be sent.
DATA_ERRORS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    ValueError,
    TypeError,
)
#: The database is away or busy: the same write may succeed later.
TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
)
#: A table that isn't there, a right that was taken away, a server that became read-only: somebody has to repair it, but
#: it may hold for this connection only.
MISCONFIGURED = (psycopg.ProgrammingError, psycopg.InternalError, psycopg.NotSupportedError)


def is_counter_drift(error: BaseException) -> bool:
    """Whether a write failed since a job's counters do not fit its items."""
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.table_name == "jobs"


def is_connection_lost(error: BaseException) -> bool:
    """Whether the server closed the connection (SQLSTATE 57P01, 57P02), or it broke without a word."""
    if not isinstance(error, psycopg.OperationalError) or isinstance(error, PoolTimeout):
        return False
    return error.sqlstate in (None, "57P01", "57P02")
