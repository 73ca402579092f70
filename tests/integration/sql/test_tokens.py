"""Tokens when several act at once: a link works once, and no session outlives what it was opened with."""

from concurrent.futures import ThreadPoolExecutor

from callboard.sql.pool import Conn, connect, transaction
from callboard.sql.reads import queries
from callboard.sql.writes import retention, tokens
from callboard.sql.writes.requests import Requester
from tests.support.databases import waits
from tests.support.workers import wait_until

ANNA = Requester("cli", "anna")


def lets_in(conn: Conn, session: str) -> bool:
    return queries.run(conn, queries.token(tokens.digest(session), ["session"])) is not None


def test_of_many_that_use_a_link_at_once_one_is_let_in(conn: Conn, database_url: str) -> None:
    link, _ = tokens.create(conn, ANNA, name="anna", kind="link")

    def log_in(_: int) -> bool:
        with connect(database_url) as own:
            return tokens.log_in(own, link) is not None

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(log_in, range(8))) == 1


def test_a_session_that_begins_while_its_token_is_revoked_ends_with_it(conn: Conn, database_url: str) -> None:
    secret, row = tokens.create(conn, ANNA, name="anna")
    with ThreadPoolExecutor(1) as pool, connect(database_url) as other:
        with transaction(conn):
            opened = tokens.log_in(conn, secret)
            assert opened is not None
            revoking = pool.submit(tokens.revoke, other, row["id"], ANNA)
            assert wait_until(lambda: waits(database_url), 300)
        assert revoking.result(300)
    assert not lets_in(conn, opened[0])
    assert tokens.log_in(conn, secret) is None


def test_a_session_ends_with_the_time_of_its_token(conn: Conn) -> None:
    short, _ = tokens.create(conn, ANNA, name="anna", expires="1h")
    link, _ = tokens.create(conn, ANNA, name="anna", kind="link", expires="1h")
    for secret, longest in ((short, 3_600), (link, tokens.SESSION_SECONDS)):
        opened = tokens.log_in(conn, secret)
        assert opened is not None
        assert longest - 60 < opened[1] <= longest


def test_what_lets_nobody_in_is_deleted_and_nothing_else(conn: Conn) -> None:
    kept, _ = tokens.create(conn, ANNA, name="kept", expires="1h")
    for name in ("late", "revoked"):
        _, row = tokens.create(conn, ANNA, name=name, expires="1h")
        if name == "revoked":
            tokens.revoke(conn, row["id"], ANNA)
    conn.execute("UPDATE callboard.tokens SET expires_at = now() - interval '1 s' WHERE name = 'late'")
    retention.delete_old_rows(conn, None)
    assert conn.execute("SELECT name FROM callboard.tokens").fetchall() == [("kept",)]
    assert queries.run(conn, queries.token(tokens.digest(kept), ["api"])) is not None
