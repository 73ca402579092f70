"""Classes of the database's errors, grouped by how a write reacts."""

import re
from functools import cache
from pathlib import Path

import psycopg
from psycopg_pool import PoolTimeout

#: The errors that a user's trigger raises by RAISE EXCEPTION, ASSERT or STRICT (class P0); our triggers raise none.
RAISED = (
    psycopg.errors.RaiseException,
    psycopg.errors.NoDataFound,
    psycopg.errors.TooManyRows,
    psycopg.errors.AssertFailure,
)
#: Errors caused by the data: SQLSTATE classes 22 and 23, 54000, a value that can't be sent, and RAISED.
DATA_ERRORS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    *RAISED,
    ValueError,
    TypeError,
)
#: The database does not answer or is busy: the same write may succeed later.
TRANSIENT = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
    PoolTimeout,
)
#: What is wrong and what to do, by the error of a database that refuses a valid statement. The last two: a pooler gives
#: a session the prepared statements of another.
REFUSALS: dict[type[Exception], tuple[str, str]] = {
    psycopg.errors.InsufficientPrivilege: ("the database refuses this user", "give it the right, or use another user"),
    psycopg.errors.ReadOnlySqlTransaction: (
        "the database can only be read",
        "set DATABASE_URL to a server that takes writes, not a standby, or end its read-only mode",
    ),
    psycopg.errors.DiskFull: ("the disk of the database is full", "free space on the disk of PostgreSQL"),
    **dict.fromkeys(
        (psycopg.errors.DuplicatePreparedStatement, psycopg.errors.InvalidSqlStatementName),
        ("the pooler loses prepared statements", "set CALLBOARD_PREPARE=off"),
    ),
}
#: The patterns of a function's name in a line of an error's context, in any language (lc_messages). For PL/pgSQL: the
#: schema, unless it is in the search path, and the name, before the arguments. For other languages: the name in quotes.
_LANGUAGE = re.compile(r"(PL/\w+)|SQL")
_SIGNATURE = re.compile(r"""(?:("[^"]+"|[a-z_][a-z0-9_]*)\.)?("[^"]+"|[a-z_][a-z0-9_]*)\(""")
_QUOTED = re.compile(r"""["»«]\s?()(\w+)\s?["»«]""")
#: The pattern of a function that our migrations create.
_OURS = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION callboard\.(\w+)")
#: PgBouncer's errors (1.18 to 1.25) for a statement for which it had no server. It cuts a text after 127 bytes, so the
#: text after a reason may be missing. Nearly all of its errors have the code of a protocol violation.
_WAITED = re.compile(r"query_(wait_)?timeout|server login (has been failing|failed)|server shutting down")


#: PgBouncer's error for a statement that waited too long for a server of its pool.
WAITED_TOO_LONG = "query_wait_timeout"

#: Advice for a failed TLS connection, by a part of libpq's error text; the first match counts.
_TLS_ADVICE = (
    ("does not match host name", "use a host in DATABASE_URL that PostgreSQL's certificate names"),
    ("root certificate file", "set sslrootcert in DATABASE_URL to the certificate that signed PostgreSQL's"),
    (
        "verify failed",
        "set sslrootcert in DATABASE_URL to the certificate that signed PostgreSQL's, or renew the latter",
    ),
    ("no encryption", "set sslmode=require in DATABASE_URL"),
    ("does not support SSL", "leave sslmode out of DATABASE_URL, or turn on TLS in PostgreSQL"),
)


class UserFunctionFailed(psycopg.DataError):
    """A user's function failed, which one of our statements ran, for example by a trigger on one of our tables."""


class UserFunctionWaits(psycopg.errors.LockNotAvailable):
    """A user's function failed with a transient error, for example because a server that it calls does not answer. It
    affects only the jobs whose rows it ran for, like a lock of these rows.
    """


def of_users(error: psycopg.Error) -> psycopg.Error:
    """Convert an error of a user's trigger, of any class, to UserFunctionFailed, or to UserFunctionWaits if it is
    transient; both name the function. Any other error is returned unchanged. So are a trigger's DATA_ERRORS, and
    transient errors for which `_is_ours` is true.
    """
    passes = isinstance(error, TRANSIENT)
    line = users_function(error)
    if line is None or isinstance(error, DATA_ERRORS) or (passes and _is_ours(error)):
        return error
    kind = UserFunctionWaits if passes else UserFunctionFailed
    return kind(f"{error.diag.message_primary}; in {line}")


def users_function(error: psycopg.Error) -> str | None:
    """Return the line of an error's context that names the user's function in which the error occurred, or None."""
    for line in (error.diag.context or "").splitlines():
        function = _function(line)
        if function is not None and function[0] != "callboard" and function[1] not in _our_functions():
            return line
    return None


def refusal(error: psycopg.Error) -> str | None:
    """Return the text of an error by which a user's function refuses a write; None for any other error."""
    line = users_function(error)
    if isinstance(error, UserFunctionFailed):
        return f"a function of this database refuses it: {error}"
    if line is None or not isinstance(error, DATA_ERRORS):
        return None
    return f"a function of this database refuses it: {error}; in {line}"


def _is_ours(error: psycopg.Error) -> bool:
    """Return whether a transient error is handled the same way in a trigger as outside: a lock, a deadlock, a lost
    connection, or a write that is too large.
    """
    locks = isinstance(error, psycopg.errors.LockNotAvailable) or (error.sqlstate or "").startswith("40")
    return locks or is_connection_lost(error) or is_too_large(error)


def _function(line: str) -> tuple[str | None, str] | None:
    """Return the schema (or None) and the name of the function in a line of a context; None if it names none."""
    language = _LANGUAGE.search(line)
    if language is None or "=" in line:  # "=": the source text of an assignment
        return None
    found = (language[1] and _SIGNATURE.search(line)) or _QUOTED.search(line)
    return found and (found[1], found[2])


@cache
def _our_functions() -> set[str]:
    """Return the names of our functions. A context does not show their schema if that is in the search path."""
    migrations = (Path(__file__).parent / "migrations").glob("*.sql")
    return {name for path in migrations for name in _OURS.findall(path.read_text("utf-8"))}


def may_be_committed(error: psycopg.OperationalError) -> bool:
    """Return whether a failed write may still be committed: its connection, or PgBouncer's to the server, was lost."""
    code = error.sqlstate
    return code is None or (code.startswith("08") and not _WAITED.search(str(error)))


def is_misconfigured(error: BaseException) -> bool:
    """Return whether a table is missing, a right was revoked, or a server became read-only. Somebody has to repair
    that, but it may affect this connection only.
    """
    kinds = (psycopg.ProgrammingError, psycopg.InternalError, psycopg.NotSupportedError)
    return isinstance(error, kinds) and not isinstance(error, DATA_ERRORS)


def is_counter_drift(error: BaseException) -> bool:
    """Return whether a write failed because a job's counters do not fit its items."""
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.table_name == "jobs"


def is_too_large(error: BaseException) -> bool:
    """Return whether a write needs more memory than the server has, or exceeds a limit (SQLSTATE 53200 and class 54).

    PostgreSQL and libpq have no SQLSTATE for a failed allocation of more than 1 GB.
    """
    if isinstance(error, psycopg.Error):
        code, text = error.sqlstate, str(error)
        return (
            code == "53200"
            or (code or "").startswith("54")
            or (code in (None, "XX000") and ("cannot allocate" in text or "memory alloc" in text))
        )
    return isinstance(error, MemoryError)


def connect_advice(error: BaseException) -> str:
    """Return what to do when a connection can't be made."""
    if limited := re.search('too many connections for (role|database) "(.+)"', str(error)):
        limit = f'ALTER {limited[1].upper()} "{limited[2]}" CONNECTION LIMIT'
        return f"close other connections, raise that limit by {limit}, or let PgBouncer share them"
    if "max_client_conn" in str(error):
        return "close other connections, or raise max_client_conn of PgBouncer"
    if re.search("connection slots|too many", str(error)):
        return "close other connections, raise max_connections, or let PgBouncer share them"
    if "No space left on device" in str(error):
        return REFUSALS[psycopg.errors.DiskFull][1]
    # A pool's timeout without the reason of a refusal: a connection was begun, and nothing answers on it.
    if WAITED_TOO_LONG in str(error) or (isinstance(error, PoolTimeout) and ": " not in str(error)):
        return "if that is a pooler, raise its pool size (PgBouncer: default_pool_size), or set pool_mode = transaction"
    return next((do for text, do in _TLS_ADVICE if text in str(error)), "start PostgreSQL, or correct DATABASE_URL")


def is_connection_lost(error: BaseException) -> bool:
    """Return whether the server ended the session with a FATAL error, or the connection was lost without one."""
    if not isinstance(error, psycopg.Error) or isinstance(error, PoolTimeout):
        return False
    return error.diag.severity_nonlocalized == "FATAL" or (
        isinstance(error, psycopg.OperationalError) and error.sqlstate in (None, "57P01", "57P02")
    )
