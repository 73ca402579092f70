"""Connections to the database, and pools of them that work behind any pooler in transaction mode."""

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


#: Seconds for which a pool tries to connect, until a connection is asked for again.
RECONNECT_SECONDS = 3.0


#: Begins a transaction. The server ends it when its client sends nothing for five seconds: a client that is frozen
#: or unplugged must not hold its locks for longer. Nor does it wait for longer for a lock of somebody else's: a
#: heartbeat or a page would wait with it. LOCAL, since a pooler gives the connection to others afterwards.
_BEGIN: LiteralString = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = '5s';"
    " SET LOCAL lock_timeout = '5s'"
)
_BOUND_LOCKS: LiteralString = "; SET LOCAL lock_timeout = %d"
#: Begins a transaction that only reads. The server stops its statements after five seconds: a few slow reads must not
#: hold up all others. It keeps the plans of prepared statements: to plan a list anew costs as much as to read it, and
#: among many jobs PostgreSQL takes a plan for these parameters to be worth that, each time. Its times are in UTC, which
#: Python reads and writes faster than any other zone.
_BEGIN_READ: LiteralString = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL statement_timeout = '5s';"
    " SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL timezone = 'UTC'"
)
#: The one setting of a session: poolers in transaction mode keep it for their clients, as they keep the encoding.
_SET_DATES: LiteralString = "SET datestyle = 'ISO'"
#: The default isolation, and the statement that sets again what RESET ALL does not bring back: what we, or a pooler,
#: have set since the session began.
_ASK_SESSION: LiteralString = """
    SELECT current_setting('default_transaction_isolation'),
           'SELECT ' || string_agg(format('pg_catalog.set_config(%L, %L, false)', name, setting), ', ')
    FROM (
        SELECT name, setting FROM pg_settings
        WHERE source = 'session' OR name IN ('DateStyle', 'client_encoding', 'application_name')
        UNION ALL SELECT 'role', current_setting('role')
    ) AS s
"""
#: Does within a transaction what DISCARD ALL does after it, but for prepared statements, which are ours. `%s`: what
#: `_ASK_SESSION` gives.
_RESTORE_SESSION = (
    "SET SESSION AUTHORIZATION DEFAULT; RESET ALL; %s; SET LOCAL idle_in_transaction_session_timeout = '5s';"
    " SET LOCAL lock_timeout = '5s';"
    " CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES"
)


class PlainConnection(Connection[tuple[Any, ...]]):
    """A connection on which statements run as we rely on, whatever the defaults of the database are.

    Where another isolation level is the default, a single statement runs in a transaction of its own, which sets it: a
    setting of the session would be lost behind a pooler, or reach others. An error's text has no DETAIL: that holds
    rows, and goes into logs. An error of a trigger of the user's is what `of_users` makes of it.
    """

    #: When (monotonic) and why the last try to connect failed, by the database's address.
    refusals: ClassVar[dict[str, tuple[float, str]]] = {}
    #: Another isolation level is the default.
    isolated = False
    #: Statements that undo, within a transaction, what a user's statement has left in the session.
    restore_session = ""

    @classmethod
    def connect(cls, conninfo: str = "", **options: Any) -> Self:
        """Connect, and ask for the defaults. Raises psycopg.OperationalError where there is no database."""
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
        try:
            if self.isolated and not _begins(query) and self.info.transaction_status == TransactionStatus.IDLE:
                with transaction(self):
                    return super().execute(query, params, **options)
            return super().execute(query, params, **options)
        except psycopg.Error as error:
            drop_detail(error)
            raise of_users(error)  # noqa: B904 — the same error, or what it says of a function of the user's

    def commit(self) -> None:
        """See `psycopg.Connection`."""
        try:
            super().commit()
        except psycopg.Error as error:
            drop_detail(error)
            raise of_users(error) from None


def _begins(query: Any) -> bool:
    return isinstance(query, str) and query.startswith(_BEGIN)


def _has_iso_dates(conn: BaseConnection[Any]) -> bool:
    return (conn.info.parameter_status("DateStyle") or "ISO").startswith("ISO")


async def _set_up(conn: AsyncConn) -> None:
    set_json_loads(parse_json, conn)
    if not _has_iso_dates(conn):
        await conn.execute(_SET_DATES, prepare=False)


def drop_detail(error: BaseException) -> None:
    """Take the DETAIL off an error's text: it holds rows, and the text goes into logs."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        error.args = (error.diag.message_primary,)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Run a block, such as a COPY, whose errors are what `PlainConnection` makes of those of its statements."""
    try:
        yield
    except psycopg.Error as error:
        drop_detail(error)
        raise of_users(error) from None


class Pool(ConnectionPool[Conn]):
    """Connections of this process. One that broke while it was idle is not lent: no caller meets an error after a
    restart or a failover. A connection is closed when a setting is to blame for an error (`is_misconfigured`): after a
    failover it may lead to a read-only server, after a migration it may hold old plans.
    """

    def getconn(self, timeout: float | None = None) -> Conn:
        """See `psycopg_pool.ConnectionPool`, whose own `check` would pause for a second and more after a broken one.

        Raises PoolTimeout, with the reason why the last try to connect failed, if it did so during the wait or shortly
        before.
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
    """Return the database's URL: `url`, or ``DATABASE_URL``, or that of a `callboard up` that runs in this folder.

    Raises NotConfigured where there is none, or DATABASE_URL is no address.
    """
    found = _find_address(url)
    if not found:
        raise NotConfigured("DATABASE_URL is not set and no `callboard up` is running here: set it, or run that")
    return found


def is_database_named(url: str | None = None) -> bool:
    """Return whether `database_address` finds one. Raises NotConfigured if DATABASE_URL is no address."""
    return bool(_find_address(url))


def _find_address(url: str | None) -> str | None:
    return url or settings.DATABASE_URL.get() or running_here().get("database_url")


def broker_addresses(database_url: str | None = None) -> str:
    """Return RabbitMQ's URLs: ``AMQP_URL``, or that of the `callboard up` whose database `database_address` returns;
    empty where there is none.
    """
    here = database_url is None and settings.DATABASE_URL.text is None
    return settings.AMQP_URL.get() or (here and running_here().get("amqp_url")) or ""


def running_here() -> dict[str, str]:
    """Return the addresses of the `callboard up` that runs in this folder; empty where none does."""
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
        # From its second run on: PostgreSQL keeps a plan after five runs at the earliest, and psycopg prepares a
        # statement after five others unless told otherwise.
        "prepare_threshold": 1,
    }
    if not settings.PREPARE.get():
        options["prepare_threshold"] = None
    return options


def connect(url: str) -> Conn:
    """Open one connection. Raises psycopg.OperationalError where there is no database."""
    return PlainConnection.connect(url, **connection_options())


def _is_of_others(record: logging.LogRecord) -> bool:
    """Return False for a warning of psycopg's from a thread of our pools, or about a connection of ours: the caller
    that asks for a connection, or uses a broken one, logs that itself, with the reason that `Pool.getconn` gives.
    """
    broken = isinstance(record.args, tuple) and any(isinstance(arg, PlainConnection) for arg in record.args)
    return record.levelno < logging.WARNING or not (broken or (record.threadName or "").startswith("callboard"))


@contextmanager
def transaction(conn: Conn, lock_wait: float | None = None) -> Iterator[None]:
    """Run a block in a transaction, or in a savepoint of the open one; `psycopg.Rollback` ends it without an error.
    `lock_wait`: seconds that a statement of it waits for a lock, before psycopg.errors.LockNotAvailable (None: five, or
    as the open transaction has it).

    The server ends the session when the client sends nothing for five seconds; the next statement then raises
    psycopg.errors.IdleInTransactionSessionTimeout, or OperationalError through a pooler.
    """
    if conn.info.transaction_status != TransactionStatus.IDLE:
        with conn.transaction():
            yield
        return
    begin = _BEGIN if lock_wait is None else _BEGIN + _BOUND_LOCKS % round(lock_wait * 1000)
    conn.execute(begin, prepare=False)  # its statements in one round trip
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
    """Return whether the server has not closed an idle connection.

    Bytes wait on an idle one only then, or when a setting has changed. A question each time would cost a round trip.
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
    """Begin a transaction that only reads; the end of the pool's block commits it."""
    await conn.execute(_BEGIN_READ, prepare=False)


def make_pool(url: str, *, size: int) -> Pool:
    """Make a pool of at most `size` connections. It opens them in the background: no database yet is no error yet.

    psycopg doubles its pause between two tries until it gives up, and the next request starts anew: to give up soon
    keeps the pauses short.
    """
    logging.getLogger("psycopg.pool").addFilter(_is_of_others)
    return Pool(
        url, connection_class=PlainConnection, kwargs=connection_options(), min_size=1, max_size=size, timeout=10,
        open=True, name="callboard", reconnect_timeout=RECONNECT_SECONDS,
    )  # fmt: skip


def make_async_pool(url: str, *, size: int) -> AsyncPool:
    """Make the same for an event loop, which opens it by ``async with``."""
    return AsyncConnectionPool(
        url, kwargs=connection_options(), min_size=1, max_size=size, timeout=10, open=False, name="callboard-web",
        reconnect_timeout=RECONNECT_SECONDS, configure=_set_up,
    )  # fmt: skip
