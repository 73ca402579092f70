"""Pools of connections."""

import asyncio
import os
import socket
import ssl
import time
from contextlib import suppress
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg_pool import ConnectionPool, PoolTimeout

from callboard.sql.errors import connect_advice
from callboard.sql.pool import PlainConnection, begin_read, connect, make_async_pool, make_pool, transaction
from tests.support.databases import with_database
from tests.support.tls import LOCALHOST
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

            def answers() -> bool:
                with pool.connection(timeout=300) as conn:
                    try:
                        return conn.execute("SELECT 1").fetchone() == (1,)
                    except psycopg.OperationalError:  # this test stood still since it was lent
                        return False

            for _ in range(2):
                assert wait_until(answers, 300)
                assert wait_until(lambda: admin.execute(mine).rowcount == 0, 300)


def test_no_statement_is_compiled(database_url: str) -> None:
    """A server with LLVM would do it at each execution of a statement that it expects to be costly."""
    with connect(database_url) as conn, transaction(conn):
        assert conn.execute("SHOW jit").fetchone() == ("off",)

    async def read() -> Any:
        async with make_async_pool(database_url, size=1) as pool, pool.connection() as conn:
            await begin_read(conn)
            return await (await conn.execute("SHOW jit")).fetchone()

    assert asyncio.run(read()) == ("off",)


def test_what_keeps_a_pool_from_a_connection_is_said(database_url: str) -> None:
    """As long as it does: a pool whose connections are all lent says nothing of it."""
    refused = "not currently accepting connections"
    name = urlsplit(database_url).path[1:]
    with connect(with_database(database_url, "postgres")) as admin, make_pool(database_url, size=1) as pool:
        pool.wait(300)
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        with make_pool(database_url, size=1) as other:
            assert wait_until(lambda: database_url in PlainConnection.refusals, 300)
            with pytest.raises(PoolTimeout, match=refused), other.connection(1):
                pass
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        connect(database_url).close()
        with pool.connection(300), pytest.raises(PoolTimeout) as lent, pool.connection(0.1):
            pass
        assert refused not in str(lent.value)
        # Long ago, by a pool that has asked for no further connection since.
        PlainConnection.refusals[database_url] = time.monotonic() - 60, refused
        with pool.connection(300), pytest.raises(PoolTimeout) as lent, pool.connection(0.1):
            pass
        assert refused not in str(lent.value)


def test_only_pools_of_others_log_that_they_cannot_connect(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks ours gets the reason."""
    away = with_database(database_url, "none_such")
    with make_pool(away, size=1) as pool:
        assert wait_until(lambda: away in PlainConnection.refusals, 300)
        with pytest.raises(PoolTimeout, match="none_such"), pool.connection(1):
            pass
    assert [record for record in caplog.records if record.name == "psycopg.pool"] == []
    with ConnectionPool(away, name="app", min_size=1, open=True):
        assert wait_until(lambda: "error connecting in 'app" in caplog.text, 300)


@pytest.mark.parametrize(
    "text",
    [
        "FATAL: sorry, too many clients already",
        "FATAL: remaining connection slots are reserved for roles with the SUPERUSER attribute",
    ],
)  # fmt: skip
def test_what_to_do_about_a_server_without_free_connections_or_space(text: str) -> None:
    assert "max_connections" in connect_advice(psycopg.OperationalError(text))
    pooled = connect_advice(psycopg.OperationalError("FATAL: no more connections allowed (max_client_conn)"))
    assert pooled == "close other connections, or raise max_client_conn of PgBouncer"
    limited = connect_advice(psycopg.OperationalError('FATAL: too many connections for role "app"'))
    assert 'raise that limit by ALTER ROLE "app" CONNECTION LIMIT,' in limited
    assert connect_advice(psycopg.OperationalError("Connection refused")).startswith("start PostgreSQL")
    plain = psycopg.OperationalError('FATAL: no pg_hba.conf entry for host "10.0.0.1", user "app", no encryption')
    assert connect_advice(plain) == "set sslmode=require in DATABASE_URL"
    hangs = "couldn't get a connection after 10.00 sec"
    assert connect_advice(PoolTimeout(hangs)).endswith("or set pool_mode = transaction")
    assert connect_advice(PoolTimeout(f"{hangs}: connection refused")).startswith("start PostgreSQL")
    full = psycopg.OperationalError("FATAL: could not write init file: No space left on device")
    assert connect_advice(full) == "free space on the disk of PostgreSQL"


def test_only_an_error_that_may_hold_for_this_connection_closes_it(database_url: str) -> None:
    with make_pool(database_url, size=1) as pool:

        def fails(text: str) -> int:
            used = []
            with suppress(psycopg.Error), pool.connection() as conn:
                used.append(conn.info.backend_pid)
                conn.execute(text)
                pytest.fail("it was taken")
            return used[0]

        refused = [fails("DO $$ BEGIN RAISE 'no' ; END $$"), fails("DO $$ BEGIN ASSERT false; END $$")]
        broken = fails("SELECT FROM no_such_table")
        assert refused == [broken, broken]
        with pool.connection() as conn:
            assert conn.info.backend_pid != broken


@pytest.mark.parametrize(
    ("speaks", "asks", "do"),
    [
        (b"S", "sslrootcert=nowhere.pem", "set sslrootcert in DATABASE_URL to the certificate"),
        (b"S", f"sslrootcert={os.devnull}", "set sslrootcert in DATABASE_URL to the certificate"),
        (b"S", f"sslrootcert={LOCALHOST}", "use a host in DATABASE_URL that"),
        (b"N", "", "leave sslmode out of DATABASE_URL"),
    ],
)  # fmt: skip
def test_what_to_do_about_tls_that_fails(speaks: bytes, asks: str, do: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(LOCALHOST)

    def answer() -> None:
        caller, _ = server.accept()
        with caller, suppress(OSError):
            caller.recv(8)  # a request for TLS
            caller.sendall(speaks)
            if speaks == b"S":
                context.wrap_socket(caller, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = Thread(target=answer)
        answering.start()
        place = f"host=app.example hostaddr=127.0.0.1 port={server.getsockname()[1]} dbname=app user=app"
        with pytest.raises(psycopg.OperationalError) as refused:
            psycopg.connect(f"{place} gssencmode=disable sslmode=verify-full {asks}")
        answering.join()
    assert connect_advice(refused.value).startswith(do)
