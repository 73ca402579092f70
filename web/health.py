"""Probes: whether the process answers, and whether its database and broker do."""

import asyncio
import ssl
from urllib.parse import urlsplit

import psycopg
from starlette.requests import Request

from callboard.sql import settings
from callboard.sql.migrate import ABSENT, SchemaError, check_applied
from callboard.sql.reads import queries
from callboard.sql.settings import NotConfigured
from callboard.web.problems import BEHIND, UNREACHABLE, Json, Problem

#: Seconds that a broker has to answer.
ANSWER_SECONDS = 2.0
OK = "ok"
UNASKED = "not asked, since AMQP_URL is not set"
#: The header by which a client of AMQP 0-9-1 opens a connection.
PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"


async def healthz(_request: Request) -> Json:
    """GET /healthz: the process answers."""
    return Json({"status": "ok"})


async def readyz(request: Request) -> Json:
    """GET /readyz: the database answers and its schema fits this code; a node of AMQP_URL answers."""
    database, broker = await asyncio.gather(_database(request), _broker())
    checks = {"database": database, "broker": broker}
    failed = [f"{name}: {what}" for name, what in checks.items() if what not in (OK, UNASKED)]
    if failed:
        return Problem(503, "; ".join(failed), checks=checks)
    return Json({"status": "ready", "checks": checks})


async def _database(request: Request) -> str:
    try:
        check_applied(await request.app.state.database.read(queries.migrations()))
    except ABSENT:
        return BEHIND
    except psycopg.OperationalError:
        return UNREACHABLE
    except (SchemaError, NotConfigured) as error:
        return str(error)
    return OK


async def _broker() -> str:
    try:
        urls = settings.AMQP_URL.get()
    except NotConfigured as error:
        return str(error)
    if not urls:
        return UNASKED
    if any(await asyncio.gather(*(_answers(url.strip()) for url in urls.split(";")))):
        return OK
    return "no node of AMQP_URL answers: check that RabbitMQ runs and that AMQP_URL leads to it"


async def _answers(url: str) -> bool:
    """Whether something that speaks AMQP answers. This needs no password: the server speaks before any login."""
    try:
        return await asyncio.wait_for(_greets(url), ANSWER_SECONDS)
    except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError):
        return False


async def _greets(url: str) -> bool:
    parts = urlsplit(url)
    secure = ssl.create_default_context() if parts.scheme == "amqps" else None
    port = parts.port or (5671 if secure else 5672)
    reader, writer = await asyncio.open_connection(parts.hostname or "localhost", port, ssl=secure)
    try:
        writer.write(PROTOCOL_HEADER)
        # The server sends Connection.Start: a method frame (1) of channel 0. Anything else is not RabbitMQ.
        return await reader.readexactly(3) == b"\x01\x00\x00"
    finally:
        writer.close()
