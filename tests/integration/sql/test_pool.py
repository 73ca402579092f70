"""Pools of connections."""

from callboard.sql.pool import connect, make_pool


def test_a_connection_that_broke_while_it_was_idle_is_not_lent(database_url: str) -> None:
    with make_pool(database_url, size=1) as pool, connect(database_url) as admin:
        with pool.connection() as conn:
            pid = conn.info.backend_pid
        admin.execute("SELECT pg_terminate_backend(%s, 60000)", (pid,))
        with pool.connection() as conn:
            assert conn.execute("SELECT pg_backend_pid()").fetchone() != (pid,)
