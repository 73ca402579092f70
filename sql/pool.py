"""Connections: where the database is, and pools that work behind any pooler in transaction mode."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakSet

from psycopg import AsyncConnection, Connection
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from callboard.sql import settings
from callboard.sql.errors import MISCONFIGURED
from callboard.sql.settings import NotConfigured

Conn: TypeAlias = Connection[tuple[Any, ...]]
AsyncConn: TypeAlias = AsyncConnection[tuple[Any, ...]]
AsyncPool: TypeAlias = AsyncConnectionPool[AsyncConn]


#: Seconds after which a pool gives up a connection, until somebody asks again; and between two lines about that.
GIVE_UP = 3.0
PAUSE = 5.0


class Pool(ConnectionPool[Conn]):
    """Connections of this process. One on which something was amiss is not lent again: after a failover it may lead to
    a server that only reads, after a migration it may hold statements of before.
    """

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Conn]:
        """Lend one for a block; raises PoolTimeout."""
        with super().connection(timeout) as conn:
            try:
                yield conn
            except MISCONFIGURED:
                conn.close()
                raise


def database_address(url: str | None = None) -> str:
    """The database's URL: the one given, ``DATABASE_URL``, or that of a `callboard up` that runs in this folder.

    Raises NotConfigured where there is none, or DATABASE_URL is no address.
    """
    found = url or settings.DATABASE_URL.get() or running_here().get("database_url")
    if not found:
        raise NotConfigured(
            "DATABASE_URL is not set and no `callboard up` is running here: set it, or run that"
        )
    return found


def running_here() -> dict[str, str]:
    """The addresses of the `callboard up` that runs in this folder; nothing where none does."""
    try:
        running = json.loads(Path(".callboard/up.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return running if isinstance(running, dict) else {}


def connection_options() -> dict[str, Any]:
    """What every connection is opened with: autocommit, short time-outs, keepalives that notice a dead peer in ~20 s.

    ``CALLBOARD_PREPARE=off`` turns prepared statements off, for poolers that lose them.
    """
    options: dict[str, Any] = {
        "autocommit": True,
        "application_name": "callboard",
        "connect_timeout": 5,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 2,
        "tcp_user_timeout": 20_000,
    }
    if not settings.PREPARE.get():
        options["prepare_threshold"] = None
    return options


def connect(url: str) -> Conn:
    """One connection of its own; raises psycopg.OperationalError where there is no database."""
    return Connection.connect(url, **connection_options())


class _Sparing(logging.Filter):
    """Lets through why a pool can't connect, once in a while: each connection would say it, and that it broke, which
    who used it says too.
    """

    _last = -PAUSE

    def filter(self, record: logging.LogRecord) -> bool:
        """See the class; the pools of others are theirs."""
        if record.levelno < logging.WARNING or not self._ours(record):
            return True
        now = time.monotonic()
        if not str(record.msg).startswith("error connecting") or now - self._last < PAUSE:
            return False
        self._last = now
        return True

    @staticmethod
    def _ours(record: logging.LogRecord) -> bool:
        """Of a pool's own threads, or of who gave a broken connection back, on whatever thread that is."""
        broken = isinstance(record.args, tuple) and any(arg in _connections for arg in record.args)
        return broken or (record.threadName or "").startswith("callboard")


_sparing = _Sparing()
_connections: WeakSet[Conn] = WeakSet()


def make_pool(url: str, *, size: int) -> Pool:
    """A pool of at most `size` connections, opened in the background: no database yet is no error yet.

    psycopg's pauses between two tries double until it gives up, and whoever asks next begins anew: giving up soon
    keeps them short.
    """
    logging.getLogger("psycopg.pool").addFilter(_sparing)
    return Pool(
        url, kwargs=connection_options(), min_size=1, max_size=size, timeout=10, open=True, name="callboard",
        reconnect_timeout=GIVE_UP, check=None, configure=_connections.add,
    )  # fmt: skip


def make_async_pool(url: str, *, size: int) -> AsyncPool:
    """The same for an event loop; to be opened there by ``async with``."""
    return AsyncConnectionPool(
        url, kwargs=connection_options(), min_size=1, max_size=size, timeout=10, open=False, name="callboard-web",
    )  # fmt: skip
