"""Connections to the database, and connection pools, which work behind any pooler in transaction mode."""

import json
import logging
import math
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, LiteralString, Self, TypeAlias

import psycopg
from psycopg import AsyncConnection, BaseConnection, Connection
from psycopg.pq import TransactionStatus
from psycopg.types.json import set_json_loads
from psycopg_pool import AsyncConnectionPool, ConnectionPool, PoolTimeout

from callboard.sql import settings
from callboard.sql.errors import is_misconfigured, of_users
from callboard.sql.json_values import parse_json
from callboard.sql.settings import NotConfigured

Conn: TypeAlias = Connection[tuple[Any, ...]]
AsyncConn: TypeAlias = AsyncConnection[tuple[Any, ...]]
AsyncPool: TypeAlias = AsyncConnectionPool[AsyncConn]


#: Seconds for which a pool retries to connect; after that it tries again when a connection is requested.
RECONNECT_SECONDS = 3.0


#: The settings of a transaction. The server ends it when its client sends nothing for five seconds, so that a frozen or
#: disconnected client does not keep its locks. It waits for five seconds at most for a lock, because heartbeats and
#: pages would wait behind it. LOCAL, because a pooler gives the connection to other clients afterwards. With `jit` the
#: server would compile a statement of 13 ms at each execution, in 380 ms (the counts of 10,000 open jobs).
_SETTINGS: LiteralString = (
    "SET LOCAL jit = off; SET LOCAL idle_in_transaction_session_timeout = '5s'; SET LOCAL lock_timeout = '5s'"
)
_BEGIN: LiteralString = "BEGIN ISOLATION LEVEL READ COMMITTED; " + _SETTINGS
_BOUND_LOCKS: LiteralString = "; SET LOCAL lock_timeout = %d"
#: Begins a read-only transaction. The server cancels its statements after five seconds: a few slow reads must not delay
#: all others. It uses generic plans of prepared statements: to plan a list again costs as much as to read it, and with
#: many jobs PostgreSQL would choose a custom plan each time. Its times are in UTC, which Python reads and writes faster
#: than other zones.
_BEGIN_READ: LiteralString = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL jit = off; SET LOCAL statement_timeout = '5s';"
    " SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL timezone = 'UTC'"
)
#: The only session setting. Poolers in transaction mode keep it for their clients, like the encoding.
_SET_DATES: LiteralString = "SET datestyle = 'ISO'"
#: Reads the default isolation, and a statement that restores the settings that RESET ALL would lose: those that we, or
#: a pooler, set after the session began.
_ASK_SESSION: LiteralString = """
    SELECT current_setting('default_transaction_isolation'),
           'SELECT ' || string_agg(format('pg_catalog.set_config(%L, %L, false)', name, setting), ', ')
    FROM (
        SELECT name, setting FROM pg_settings
        WHERE source = 'session' OR name IN ('DateStyle', 'client_encoding', 'application_name')
        UNION ALL SELECT 'role', current_setting('role')
    ) AS s
"""
#: Has the effect of DISCARD ALL within a transaction, but keeps prepared statements, which are ours. `%s`: the
#: statement that `_ASK_SESSION` returns.
_RESTORE_SESSION = (
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; %s; " + _SETTINGS + "; CLOSE ALL; UNLISTEN *;"
    " SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)


class PlainConnection(Connection[tuple[Any, ...]]):
    """A connection whose statements do not depend on the defaults of the database.

    If another isolation level is the default, a single statement runs in a transaction that sets READ COMMITTED. A
    session setting would be lost behind a pooler, or affect other clients. An error's text has no DETAIL, because that
    contains row data, and the text is logged. Errors of a user's triggers are converted by `of_users`.
    """

    #: {database address: (monotonic time, reason)} of the last failed try to connect.
    refusals: ClassVar[dict[str, tuple[float, str]]] = {}
    #: Whether another isolation level than READ COMMITTED is the default.
    isolated = False
    #: Statements that undo, within a transaction, the changes of a user's statement to the session.
    restore_session = ""

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connect, and read the defaults. Raises psycopg.OperationalError if there is no database."""
        try:
            conn = super().connect(conninfo, **options)
        except psycopg.OperationalError as error:
            cls.refusals[conninfo] = time.monotonic(), str(error).strip()
            raise
        cls.refusals.pop(conninfo, None)
        if not _has_iso_dates(conn):
            conn.execute(_SET_DATES, prepare=False)
        for isolation, set_again in conn.execute(_ASK_SESSION, prepare=False):
            conn.isolated = isolation != "read committed"
            conn.restore_session = _RESTORE_SESSION % set_again
        return conn

    def execute(self, query: Any, params: Any = None, **options: Any) -> Any:
        """See `psycopg.Connection`."""
        with plain_errors():
            if self.isolated and not _begins(query) and self.info.transaction_status == TransactionStatus.IDLE:
                with transaction(self):
                    return super().execute(query, params, **options)
            return super().execute(query, params, **options)

    def commit(self) -> None:
        """See `psycopg.Connection`."""
        with plain_errors():
            super().commit()


def _begins(query: Any) -> bool:
    return isinstance(query, str) and query.startswith(_BEGIN)


def _has_iso_dates(conn: BaseConnection[Any]) -> bool:
    return (conn.info.parameter_status("DateStyle") or "ISO").startswith("ISO")


async def _set_up(conn: AsyncConn) -> None:
    set_json_loads(parse_json, conn)
    if not _has_iso_dates(conn):
        await conn.execute(_SET_DATES, prepare=False)


def drop_detail(error: BaseException) -> None:
    """Remove the DETAIL from an error's text: it contains row data, and the text is logged."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        error.args = (error.diag.message_primary,)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Run a block, such as a COPY, and convert its errors as `PlainConnection` describes."""
    try:
        yield
    except psycopg.Error as error:
        drop_detail(error)
        raise of_users(error)  # noqa: B904 — the same error, or its conversion


class Pool(ConnectionPool[Conn]):
    """The connection pool of this process. A connection that broke while it was idle is not lent, so callers see no
    error after a restart or a failover. A connection is closed after an error of configuration (`is_misconfigured`):
    after a failover it may lead to a read-only server, after a migration it may have old plans.
    """

    def getconn(self, timeout: float | None = None) -> Conn:
        """See `psycopg_pool.ConnectionPool`. Its own `check` would pause for a second or more after a broken
        connection.

        Raises PoolTimeout. Its text has the reason of the last failed try to connect, if that was during the wait or
        shortly before.
        """
        began = time.monotonic()
        until = began + (self.timeout if timeout is None else timeout)
        try:
            while not _is_usable(conn := super().getconn(max(0.0, until - time.monotonic()))):
                conn.close()
                self.putconn(conn)
        except PoolTimeout as error:
            at, refusal = PlainConnection.refusals.get(str(self.conninfo), (-math.inf, ""))
            raise PoolTimeout(f"{error}: {refusal}" if at > began - RECONNECT_SECONDS else str(error)) from None
        return conn

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Conn]:
        """Lend a connection for a block. Raises PoolTimeout."""
        with super().connection(timeout) as conn:
            try:
                yield conn
            except psycopg.Error as error:
                if is_misconfigured(error):
                    conn.close()
                raise


def database_address(url: str | None = None) -> str:
    """Return the database's URL: `url`, or ``DATABASE_URL``, or the URL of a `callboard up` that runs in this folder.

    Raises NotConfigured if there is none, or DATABASE_URL is no address.
    """
    found = _find_address(url)
    if not found:
        raise NotConfigured("DATABASE_URL is not set and no `callboard up` is running here: set it, or run that")
    return found


def is_database_named(url: str | None = None) -> bool:
    """Return whether `database_address` finds a URL. Raises NotConfigured if DATABASE_URL is no address."""
    return bool(_find_address(url))


def _find_address(url: str | None) -> str | None:
    return url or settings.DATABASE_URL.get() or running_here().get("database_url")


def broker_addresses(database_url: str | None = None) -> str:
    """Return RabbitMQ's URLs: ``AMQP_URL``, or the URL of the `callboard up` whose database `database_address` returns;
    empty if there is none.
    """
    here = database_url is None and settings.DATABASE_URL.text is None
    return settings.AMQP_URL.get() or (here and running_here().get("amqp_url")) or ""


def running_here() -> dict[str, str]:
    """Return the addresses of the `callboard up` that runs in this folder; an empty dict if none runs."""
    try:
        running = json.loads(Path(".callboard/up.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return running if isinstance(running, dict) else {}


def connection_options() -> dict[str, Any]:
    """Return the options of every connection: autocommit, short time-outs, keepalives that find a dead server in ~20 s.

    ``CALLBOARD_PREPARE=off`` turns prepared statements off, for poolers that lose them.
    """
    options: dict[str, Any] = {
        "autocommit": True,
        "application_name": "callboard",
        "client_encoding": "utf8",
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 20_000,
        # Prepare a statement at its second run: PostgreSQL keeps a plan after five runs at the earliest, and psycopg's
        # default prepares only after five others.
        "prepare_threshold": 1,
    }
    if not settings.PREPARE.get():
        options["prepare_threshold"] = None
    return options


def connect(url: str) -> Conn:
    """Open one connection. Raises psycopg.OperationalError if there is no database."""
    return PlainConnection.connect(url, **connection_options())


def _is_of_others(record: logging.LogRecord) -> bool:
    """Return False for a warning of psycopg that comes from a thread of our pools, or concerns one of our connections:
    our callers log that error themselves, with the reason from `Pool.getconn`.
    """
    broken = isinstance(record.args, tuple) and any(isinstance(arg, PlainConnection) for arg in record.args)
    return record.levelno < logging.WARNING or not (broken or (record.threadName or "").startswith("callboard"))


@contextmanager
def transaction(conn: Conn, lock_wait: float | None = None) -> Iterator[None]:
    """Run a block in a transaction, or in a savepoint of the open one; `psycopg.Rollback` ends it without an error.
    `lock_wait`: seconds for which a statement waits for a lock before it raises psycopg.errors.LockNotAvailable (None:
    5 s, or the value of the open transaction).

    The server ends the session when the client sends nothing for five seconds; the next statement then raises
    psycopg.errors.IdleInTransactionSessionTimeout, or OperationalError through a pooler.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE:
        with conn.transaction():
            yield
        return
    begin = _BEGIN if lock_wait is None else _BEGIN + _BOUND_LOCKS % round(lock_wait * 1000)
    conn.execute(begin, prepare=False)  # all its statements in one round trip
    try:
        yield
    except BaseException as error:
        drop_detail(error)
        with suppress(psycopg.Error):
            conn.rollback()
        if not isinstance(error, psycopg.Rollback):
            raise
    else:
        conn.commit()


def _is_usable(conn: Conn) -> bool:
    """Return whether the server has left an idle connection open.

    An idle connection has bytes to read only if it was closed or a setting changed. A query each time would cost a
    round trip.
    """
    try:
        poll = select.poll()
        poll.register(conn.fileno(), select.POLLIN)
        if poll.poll(0):
            Pool.check_connection(conn)
    except psycopg.Error:
        return False
    return True


async def begin_read(conn: AsyncConn) -> None:
    """Begin a read-only transaction; the end of the pool's block commits it."""
    await conn.execute(_BEGIN_READ, prepare=False)


def make_pool(url: str, *, size: int) -> Pool:
    """Make a pool of at most `size` connections. It opens them in the background, so the database may start later.

    psycopg doubles its pause between two tries until it gives up; the next request starts again with a short pause. A
    short `reconnect_timeout` keeps the pauses short.
    """
    logging.getLogger("psycopg.pool").addFilter(_is_of_others)
    return Pool(
        url, connection_class=PlainConnection, kwargs=connection_options(), min_size=1, max_size=size, timeout=10,
        open=True, name="callboard", reconnect_timeout=RECONNECT_SECONDS,
    )  # fmt: skip


def make_async_pool(url: str, *, size: int) -> AsyncPool:
    """Make such a pool for an event loop, which opens it by ``async with``."""
    return AsyncConnectionPool(
        url, kwargs=connection_options(), min_size=1, max_size=size, timeout=10, open=False, name="callboard-web",
        reconnect_timeout=RECONNECT_SECONDS, configure=_set_up,
    )  # fmt: skip
