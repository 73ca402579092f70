"""The state that all parts of one process share: its database connections, its worker id, and whether it stops."""

import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg_pool import PoolTimeout

from callboard.middleware.process.outage import OutageLog
from callboard.middleware.process.run_file import RunFile
from callboard.sql.errors import DATA_ERRORS
from callboard.sql.pool import Conn, Pool, make_pool

T = TypeVar("T")

#: The most connections that a process opens: for the two journals, the heartbeat or sweep, the publisher, and a claim.
CONNECTIONS = 5
#: Seconds that a stopping process waits for its last writes, all of its parts together.
STOP_SECONDS = 8.0
#: Seconds for which one try of `retry_write` waits for a connection.
CONNECTION_SECONDS = 2.0
#: Seconds between two tries while the database does not answer.
RETRY_SECONDS = 0.5

_waiting = OutageLog(logging.getLogger("callboard.tracking"), "a message waits for the database: %s")


class Stopping(RuntimeError):
    """The process is stopping and the database does not answer."""


def check_not_ending() -> None:
    """Raise RuntimeError if the interpreter ends, as in a `__del__` that it calls last. A thread that starts then never
    runs, and `Thread.start` waits for it for ever before Python 3.12, which raises RuntimeError too.
    """
    if sys.is_finalizing():
        raise RuntimeError("the program has ended: send, submit and ask before that, or in a function of atexit")


class Process:
    """The state that the parts of one process share. Any thread may use it.

    `worker` is the process's id in `workers` and `threads` the number of its worker threads; both are 0 in a process
    that is no worker. `remote`: other processes consume from the broker too. `connections`: the most connections that
    it opens. `idle`: it had no work for some seconds, and only the heartbeat polls for work; see `Heartbeat`. `runs`:
    the file of its running attempts, from which other processes requeue them if this process is killed. `url`: the
    address of its database.
    """

    def __init__(self, url: str, *, remote: bool = True, connections: int = CONNECTIONS) -> None:
        self.url = url
        self._remote = remote
        self._connections = connections
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._stop_by: float | None = None
        self.worker = 0
        self.threads = 0
        self.stopping = False
        self.idle = False
        self.runs = RunFile()

    @property
    def pool(self) -> Pool:
        """The process's connections; opened when first needed."""
        with self._lock:
            if self._pool is None:
                check_not_ending()
                self._pool = make_pool(self.url, size=self._connections)
            return self._pool

    @property
    def publishes(self) -> bool:
        """Whether this process can publish. On an in-process broker it can only if it is the worker, too."""
        return self._remote or self.worker != 0

    def write(self, statement: Callable[[Conn], T], timeout: float | None = None) -> T:
        """Run a write statement once, and return its result; waits `timeout` seconds for a connection (None: 10).

        Raises psycopg.Error or PoolTimeout.
        """
        with self.pool.connection(timeout) as conn:
            return statement(conn)

    def retry_write(self, statement: Callable[[Conn], T], log_outage: Callable[[BaseException], None] = _waiting) -> T:
        """Run a write statement until the database answers; see `retry`."""
        return self.retry(lambda: self.write(statement, CONNECTION_SECONDS), log_outage)

    def retry(self, query: Callable[[], T], log_outage: Callable[[BaseException], None] = _waiting) -> T:
        """Run `query` until the database answers, every half second; return its result.

        Raises Stopping when the process stops while the database is away, and DATA_ERRORS at once.
        """
        while True:
            try:
                return query()
            except DATA_ERRORS:
                raise
            except (psycopg.Error, PoolTimeout) as error:
                if self.stopping:
                    raise Stopping from error
                log_outage(error)
                time.sleep(RETRY_SECONDS)

    def time_left(self) -> float:
        """Return the seconds that a stopping process may still wait. They count down from the first call after
        `stopping` is set.
        """
        if not self.stopping:
            return STOP_SECONDS
        with self._lock:
            if self._stop_by is None:
                self._stop_by = time.monotonic() + STOP_SECONDS
            return max(self._stop_by - time.monotonic(), 0.0)

    def close(self) -> None:
        """Close the connections, and delete the file of running attempts. Waits at most 5 s for connections in use."""
        self.runs.close()
        if self._pool is not None:
            self._pool.close(min(self.time_left() + 1.0, 5.0))
