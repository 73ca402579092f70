"""Pools of connections."""

from callboard.sql.pool import connect, make_pool
from tests.support.workers import wait_until


def test_a_connection_that_broke_while_it_was_idle_is_not_lent(database_url: str) -> None:
    with make_pool(database_url, size=1) as pool, connect(database_url) as admin:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
        admin.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
        with pool.connection() as conn:
            assert conn.execute("SELECT pg_backend_pid()").fetchone() != (pid,)


def test_a_server_that_ends_idle_sessions_soon_keeps_nobody_waiting(database_url: str) -> None:
    """A new connection is lent as soon as it is there: after a pause it would be too old as well."""
    with connect(database_url) as admin:
        admin.execute(f"ALTER DATABASE {admin.info.dbname} SET idle_session_timeout = '700ms'")
        mine = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        with make_pool(database_url, size=2) as pool:
            for _ in range(2):
                with pool.connection(timeout=300) as conn:
                    assert conn.execute("SELECT 1").fetchone() == (1,)
                assert wait_until(lambda: admin.execute(mine).rowcount == 0, 300)
