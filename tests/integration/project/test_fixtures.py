"""The fixtures give every test services of its own."""

from urllib.parse import urlsplit

import psycopg


def test_older_database_is_migrated(older_database_url: str) -> None:
    with psycopg.connect(older_database_url) as connection:
        assert 140000 <= connection.info.server_version < 180000
        assert connection.execute("SELECT count(*) FROM callboard.jobs").fetchone() == (0,)


def test_pooler_shares_server_sessions(pooled_url: str, database_url: str) -> None:
    with psycopg.connect(pooled_url, autocommit=True) as one, psycopg.connect(pooled_url, autocommit=True) as two:
        pids = {c.execute("SELECT pg_backend_pid()").fetchone() for c in (one, two)}
        name = one.execute("SELECT current_database()").fetchone()
    assert len(pids) == 1
    assert name == (urlsplit(database_url).path[1:],)
