"""Classes of errors of the database, by what a write does after them."""

import re
from functools import cache
from pathlib import Path

import psycopg
from psycopg_pool import PoolTimeout

#: What a user's trigger on our tables refuses by RAISE EXCEPTION, ASSERT or STRICT (class P0); ours raise nothing.
RAISED = (
    psycopg.errors.RaiseException,
    psycopg.errors.NoDataFound,
    psycopg.errors.TooManyRows,
    psycopg.errors.AssertFailure,
)
#: The data is to blame: SQLSTATE classes 22 and 23, 54000, a value that can't be sent, or what a trigger has RAISED.
DATA_ERRORS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.errors.ProgramLimitExceeded,
    *RAISED,
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
#: What is wrong with a database that takes no writes, and what to do.
READ_ONLY = "the database can only be read"
PRIMARY = "let DATABASE_URL name a server that takes writes, and no standby, or end its read-only mode"
#: What is wrong with a role that lacks a right, and what to do.
NO_RIGHT, GIVE_RIGHT = "the database refuses this user", "give it the right, or use another user"
#: What is wrong with a database whose disk is full, and what to do.
FULL, FREE_SPACE = "the disk of the database is full", "free space on the disk of PostgreSQL"
#: A function that was running when an error came, in a line of its context in any language (lc_messages): of PL/pgSQL
#: its schema, unless that is in the search path, and its name, before its arguments; of others its name in quotes.
_LANGUAGE = re.compile(r"(PL/\w+)|SQL")
_SIGNATURE = re.compile(r"""(?:("[^"]+"|[a-z_][a-z0-9_]*)\.)?("[^"]+"|[a-z_][a-z0-9_]*)\(""")
_QUOTED = re.compile(r"""["»«]\s?()(\w+)\s?["»«]""")
#: A function that one of our migrations makes.
_OURS = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION callboard\.(\w+)")
#: What PgBouncer (1.18 to 1.25) says of a statement for which it had no server. It cuts a text after 127 bytes, so what
#: stands behind a reason may be missing. Nearly all that it says has the code of a protocol violation.
_WAITED = re.compile(r"query_(wait_)?timeout|server login (has been failing|failed)|server shutting down")


#: What to do about a connection that can't be made by TLS, by a text of libpq's error; the first that is found.
_TLS_ADVICE = (
    ("does not match host name", "let DATABASE_URL have a host that the certificate of PostgreSQL names"),
    ("root certificate file", "let sslrootcert in DATABASE_URL name the certificate that signed PostgreSQL's"),
    (
        "verify failed",
        "let sslrootcert in DATABASE_URL name the certificate that signed PostgreSQL's, or renew the latter",
    ),
    ("no encryption", "let DATABASE_URL have sslmode=require"),
    ("does not support SSL", "leave sslmode out of DATABASE_URL, or have PostgreSQL use TLS"),
)


class UserFunctionFailed(psycopg.DataError):
    """A function of the user's failed that a statement of ours has run, as by a trigger on one of our tables."""


class UserFunctionWaits(psycopg.errors.LockNotAvailable):
    """A function of the user's met what may pass: a server that it asks is away, say. It concerns the jobs whose rows
    it is run for, as a lock of their rows does, and no others.
    """


def of_users(error: psycopg.Error) -> psycopg.Error:
    """Return an error of a trigger of the user's, which may be of any class, as UserFunctionFailed, or as
    UserFunctionWaits if it may pass; both name the function. Return any other error as it is, and also these of a
    trigger: one of DATA_ERRORS, which blames the data already, and what `_is_ours` names.
    """
    passes = isinstance(error, TRANSIENT)
    line = users_function(error)
    if line is None or isinstance(error, DATA_ERRORS) or (passes and _is_ours(error)):
        return error
    kind = UserFunctionWaits if passes else UserFunctionFailed
    return kind(f"{error.diag.message_primary}; in {line}")


def users_function(error: psycopg.Error) -> str | None:
    """Return the line of an error's context that names a function of the user's, in which the error came, if any."""
    for line in (error.diag.context or "").splitlines():
        function = _function(line)
        if function is not None and function[0] != "callboard" and function[1] not in _our_functions():
            return line
    return None


def refusal(error: psycopg.Error) -> str | None:
    """Return what to say of an error by which a function of the user's refuses a write; None for any other error."""
    line = users_function(error)
    if isinstance(error, UserFunctionFailed):
        return f"a function of this database refuses it: {error}"
    if line is None or not isinstance(error, DATA_ERRORS):
        return None
    return f"a function of this database refuses it: {error}; in {line}"


def _is_ours(error: psycopg.Error) -> bool:
    """Whether an error that may pass is treated alike in a trigger and outside: a lock, a deadlock, a lost connection,
    or a write that is too large.
    """
    locks = isinstance(error, psycopg.errors.LockNotAvailable) or (error.sqlstate or "").startswith("40")
    return locks or is_connection_lost(error) or is_too_large(error)


def _function(line: str) -> tuple[str | None, str] | None:
    """Return schema and name of the function that a line of a context names; None if it names none."""
    language = _LANGUAGE.search(line)
    if language is None or "=" in line:  # an assignment, as it is written
        return None
    found = (language[1] and _SIGNATURE.search(line)) or _QUOTED.search(line)
    return found and (found[1], found[2])


@cache
def _our_functions() -> set[str]:
    """The names of our functions: one has no schema in a context if that is in the search path."""
    migrations = (Path(__file__).parent / "migrations").glob("*.sql")
    return {name for path in migrations for name in _OURS.findall(path.read_text("utf-8"))}


def may_be_committed(error: psycopg.OperationalError) -> bool:
    """Whether what failed may be committed all the same: the connection broke, or that of PgBouncer to the server."""
    code = error.sqlstate
    return code is None or (code.startswith("08") and not _WAITED.search(str(error)))


def is_misconfigured(error: BaseException) -> bool:
    """Whether a table isn't there, a right was taken away, or a server became read-only: somebody has to repair it, but
    it may hold for this connection only.
    """
    kinds = (psycopg.ProgrammingError, psycopg.InternalError, psycopg.NotSupportedError)
    return isinstance(error, kinds) and not isinstance(error, DATA_ERRORS)


def is_counter_drift(error: BaseException) -> bool:
    """Whether a write failed since a job's counters do not fit its items."""
    return isinstance(error, psycopg.errors.CheckViolation) and error.diag.table_name == "jobs"


def is_too_large(error: BaseException) -> bool:
    """Whether a write needs more memory than there is, or passes a limit of the server (SQLSTATE 53200 and class 54).

    PostgreSQL and libpq have no code for an allocation of more than 1 GB.
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
        return f"close connections of others, raise that limit by {limit}, or let PgBouncer share them"
    if re.search("connection slots|too many|no more connections", str(error)):
        return "close connections of others, raise max_connections, or let PgBouncer share them"
    if "No space left on device" in str(error):
        return FREE_SPACE
    return next((do for text, do in _TLS_ADVICE if text in str(error)), "start PostgreSQL, or correct DATABASE_URL")


def is_connection_lost(error: BaseException) -> bool:
    """Whether the server ended the session, which it says as FATAL, or the connection broke without a word."""
    if not isinstance(error, psycopg.Error) or isinstance(error, PoolTimeout):
        return False
    return error.diag.severity_nonlocalized == "FATAL" or (
        isinstance(error, psycopg.OperationalError) and error.sqlstate in (None, "57P01", "57P02")
    )
