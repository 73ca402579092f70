"""Probes: whether the process answers, and whether its database and broker do."""

import asyncio
import logging
from contextlib import suppress

import psycopg
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from callboard.middleware.process.outage import OutageLog
from callboard.middleware.rabbitmq.queue_admin import NoAnswer, connected
from callboard.sql import settings
from callboard.sql.migrate import ABSENT, SchemaError, check_applied
from callboard.sql.reads import queries
from callboard.sql.settings import NotConfigured
from callboard.web.problems import BEHIND, UNREACHABLE, Json, Problem

#: Why is only logged, since a probe has no login; and not at each probe, of which anybody may send many.
_log_outage = OutageLog(logging.getLogger("callboard.web"), "the broker does not answer: %s")

#: Seconds that an answer waits for the broker: fewer than the five of the probe in docs/kubernetes.md. The question may
#: take longer, as while no name server answers, and goes on.
BROKER_SECONDS = 4.0

OK = "ok"
UNASKED = "not asked, since AMQP_URL is not set"
CLOSED = (
    "no node of AMQP_URL lets this app in: check that RabbitMQ runs, and the address and the login in AMQP_URL; the "
    "app's log says why"
)
#: The question to the broker that goes on in an event loop.
_asked: dict[asyncio.AbstractEventLoop, asyncio.Task[str]] = {}


async def healthz(_request: Request) -> Json:
    """GET /healthz: the process answers."""
    return Json({"status": "ok"})


async def readyz(request: Request) -> Json:
    """GET /readyz: the database answers and its schema fits this code; a node of AMQP_URL takes a connection."""
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
    """Ask the broker, or wait for the answer to the probe that asks it already: a question takes a thread, and so many
    probes as somebody without a login likes to send must not take all of them.
    """
    loop = asyncio.get_running_loop()
    asked = _asked.get(loop)
    if asked is None:
        asked = _asked[loop] = loop.create_task(_ask_broker())
        asked.add_done_callback(lambda _: _asked.pop(loop))
    with suppress(TimeoutError):
        async with asyncio.timeout(BROKER_SECONDS):
            return await asyncio.shield(asked)
    return CLOSED


async def _ask_broker() -> str:
    try:
        urls = settings.AMQP_URL.get()
    except NotConfigured as error:
        return str(error)
    if not urls:
        return UNASKED
    if any(await asyncio.gather(*(run_in_threadpool(_answers, url) for url in urls.split(";")))):
        return OK
    return CLOSED


def _answers(url: str) -> bool:
    """Whether a node lets this process in."""
    try:
        with connected(url):
            return True
    except NoAnswer as error:
        _log_outage(error)
        return False
