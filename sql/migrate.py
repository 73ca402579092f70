"""Migrations: numbered files, each applied once, in order, in one transaction under a lock.

A file whose first line is ``-- breaking`` may break older code; all others only add. No library fits: the list of
migrations must be in the schema `callboard` (the database may be the user's own), and a migration must work through a
pooler in transaction mode, and leave no lock when it is killed.
"""

import logging
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import LiteralString

import psycopg

from callboard.sql.pool import Conn, connect, transaction
from callboard.sql.statements import statement

log = logging.getLogger("callboard.migrate")

#: Seconds for which a migration that meets locks is retried, and seconds between two tries.
LOCK_TRIES_SECONDS, LOCK_PAUSE_SECONDS = 300.0, 1.0

#: The least seconds of each session limit with which Callboard works. Our own limits are set in each transaction.
LEAST_SECONDS = {"statement_timeout": 10, "transaction_timeout": 10, "lock_timeout": 1, "idle_session_timeout": 1}

MIGRATIONS = Path(__file__).parent / "migrations"

#: The errors of a database without the schema.
ABSENT = (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName)
#: The errors of statements on the schema of another release, or without a schema.
MISFIT = (
    *ABSENT,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.UndefinedFunction,
    psycopg.errors.UndefinedObject,
    psycopg.errors.InvalidColumnReference,
)


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    breaking: bool
    text: LiteralString


class SchemaError(RuntimeError):
    """The schema of the database does not fit this code; the text says what to do."""


def known_migrations() -> list[Migration]:
    """Return the migrations that this code was written for, in order."""
    return [_read(path) for path in sorted(MIGRATIONS.glob("[0-9]*.sql"))]


@cache
def newest_migration() -> int:
    """Return the number of the last migration."""
    return known_migrations()[-1].number


def migrate(url: str) -> list[str]:
    """Apply the missing migrations; return their names. It may run again, and in two places at once.

    While a step waits for a lock of a table, all other users of the table wait behind it. So it waits for two seconds
    at most, and tries again for five minutes. Raises SchemaError, also for an unsuitable database.
    """
    deadline = time.monotonic() + LOCK_TRIES_SECONDS
    with connect(url) as conn:
        check_database(conn)
        waiting = False
        while True:
            try:
                return _apply(conn)
            except psycopg.errors.LockNotAvailable:
                if time.monotonic() > deadline:
                    raise SchemaError(
                        "the schema can't be changed, because another session has locked one of its tables: end that "
                        "session (see pg_stat_activity), and run `callboard migrate` again"
                    ) from None
                if not waiting:
                    log.warning("a table of the schema is in use; the migration is tried for five minutes")
                    waiting = True
                time.sleep(LOCK_PAUSE_SECONDS)


def check_database(conn: Conn) -> None:
    """Raise SchemaError if the database's encoding can't store every text, a session limit is too short, row level
    security may hide our rows, one of our triggers does not run, or a pooler uses statement mode.
    """
    try:
        with transaction(conn):
            pass
    except psycopg.errors.ProtocolViolation as error:
        if "statement pooling" not in str(error):
            raise
        raise SchemaError(
            "PgBouncer gives each statement another connection, so no transaction works: set pool_mode = transaction"
        ) from None
    encoding = conn.info.parameter_status("server_encoding") or "UTF8"
    if encoding != "UTF8":
        raise SchemaError(
            f"the database has the encoding {encoding}, in which not every text can be stored: use one with UTF8, as "
            "`createdb --encoding UTF8 --template template0 --locale C callboard` makes it"
        )
    role = conn.info.user
    for name, seconds in conn.execute(statement("limits_of_sessions"), (list(LEAST_SECONDS),)):
        if 0 < seconds < LEAST_SECONDS[name]:
            raise SchemaError(
                f"{name} is {seconds:g} s in sessions of the role {role}, and must be {LEAST_SECONDS[name]} s or more, "
                f"or 0: ALTER ROLE {role} SET {name} = '60s', unless the database or the server sets it"
            )
    for (table,) in conn.execute(statement("tables_with_hidden_rows")):
        raise SchemaError(
            f"row level security of callboard.{table} applies to the role {role}: a hidden row would be taken "
            f"for a deleted one: ALTER ROLE {role} BYPASSRLS, or ALTER TABLE callboard.{table} DISABLE ROW LEVEL "
            "SECURITY"
        )
    for table, trigger in conn.execute(statement("idle_triggers")):
        raise SchemaError(
            f"the trigger {trigger} of callboard.{table} does not run in sessions of the role {role}, and without it "
            f"jobs stand still, or callbacks or totals are missing: ALTER TABLE callboard.{table} ENABLE TRIGGER "
            f"{trigger} if it is disabled, or ALTER ROLE {role} SET session_replication_role = origin, unless the "
            "database or the server sets it"
        )


def check_rights(conn: Conn) -> None:
    """Raise SchemaError if the role lacks a right that a worker needs: otherwise it would fail later, once for each
    missing right.
    """
    if missing := [text for (text,) in conn.execute(statement("missing_rights"))]:
        raise SchemaError(f"the database's role lacks rights, which the schema's owner can give: {'; '.join(missing)}")


def _apply(conn: Conn) -> list[str]:
    with conn.transaction():
        conn.execute(statement("bound_lock_waits"))
        conn.execute(statement("prepare_schema"))
        present = _applied(conn)
        _refuse_breaking(present)
        missing = [step for step in known_migrations() if step.number not in present]
        for step in missing:
            conn.execute(step.text)
            conn.execute(statement("note_migration"), (step.number, step.name, step.breaking))
    return [step.name for step in missing]


def check(conn: Conn) -> str | None:
    """Check that this code fits the schema; return None, or a warning to log.

    Raises SchemaError when the schema is absent, behind, or ahead by a migration that breaks older code, and for an
    unsuitable database.
    """
    check_database(conn)
    try:
        present = _applied(conn)
    except ABSENT:
        present = {}
    return check_applied(present)


def check_applied(present: dict[int, tuple[str, bool]]) -> str | None:
    """Check the applied migrations, {number: (name, breaking)}, as `check` does."""
    if not present:
        raise SchemaError("the database has no callboard schema yet: run `callboard migrate`")
    missing = [step.name for step in known_migrations() if step.number not in present]
    if missing:
        raise SchemaError(f"the database's schema is behind this code by {', '.join(missing)}: run `callboard migrate`")
    _refuse_breaking(present)
    ahead = [name for number, (name, _) in present.items() if number > known_migrations()[-1].number]
    if ahead:
        return f"the database's schema is ahead of this code by {', '.join(ahead)}, which only add to it; going on"
    return None


def check_not_outdated(conn: Conn) -> None:
    """Raise SchemaError if the schema is ahead of this code by a migration that breaks older code."""
    _refuse_breaking(_applied(conn))


def _refuse_breaking(present: dict[int, tuple[str, bool]]) -> None:
    newest = known_migrations()[-1].number
    breaking = [name for number, (name, breaks) in present.items() if number > newest and breaks]
    if breaking:
        raise SchemaError(
            f"the database's schema is ahead of this code by {', '.join(breaking)}, which older code can't run on: "
            "install the release of Callboard that made it, or a newer one"
        )


def _applied(conn: Conn) -> dict[int, tuple[str, bool]]:
    return {number: (name, breaking) for number, name, breaking in conn.execute(statement("applied_migrations"))}


def _read(path: Path) -> Migration:
    text = path.read_text(encoding="utf-8")
    return Migration(int(path.name[:4]), path.stem, text.startswith("-- breaking"), text)
