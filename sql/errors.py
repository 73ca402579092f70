"""What an error of the database means for what was to be written."""

import psycopg
from psycopg_pool import PoolTimeout

#: The data is to blame, not the database: SQLSTATE classes 22, 23 and 54, or a value that can't be sent.
DATA_ERRORS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    ValueError,
    TypeError,
)
#: The database is away or busy: the same again, and it may pass.
TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
#: Neither: a table that isn't there, a right that was taken away, a server that became read-only. Somebody has to mend
#: it, and it may hold for this connection only.
MISCONFIGURED = (psycopg.ProgrammingError, psycopg.InternalError, psycopg.NotSupportedError)


def drifted(error: BaseException) -> bool:
    """Whether a job's counters are to blame: they do not fit what was to be added, whatever that was."""
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.table_name == "jobs"


def cut_off(error: BaseException) -> bool:
    """Whether a connection was lost: the server closed it and said so (SQLSTATE 57P01, 57P02), or it broke unsaid."""
    if not isinstance(error, psycopg.OperationalError) or isinstance(error, PoolTimeout):
        return False
    return error.sqlstate in (None, "57P01", "57P02")
