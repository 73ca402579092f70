"""Probes: whether the process answers, and whether its database and its broker answer."""

import asyncio
import logging
from contextlib import suppress

import psycopg
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from callboard.middleware.process.outage import OutageLog
from callboard.middleware.rabbitmq.queue_admin import NoAnswer, connected
from callboard.sql.migrate import ABSENT, SchemaError, check_applied
from callboard.sql.pool import broker_addresses
from callboard.sql.reads import queries
from callboard.sql.settings import NotConfigured
from callboard.web.problems import BEHIND, UNREACHABLE, Json, Problem

#: The reason is only logged, because a probe has no login; and not at each probe, because anybody may send many.
_log_outage = OutageLog(logging.getLogger("callboard.web"), "the broker does not answer: %s")

#: Seconds for which an answer waits for the broker: less than the 5 s of the probe in docs/kubernetes.md. The check #:
#: itself may take longer, for example while no name server answers, and continues.
BROKER_SECONDS = 4.0

OK = "ok"
NOT_CHECKED = "not checked, because AMQP_URL is not set"
CLOSED = (
    "no node of AMQP_URL accepts this app: check that RabbitMQ runs, and the address and the login in AMQP_URL; the "
    "app's log says why"
)
#: The running check of the broker, by event loop.
_checks: dict[asyncio.AbstractEventLoop, asyncio.Task[str]] = {}


async def healthz(_request: Request) -> Json:
    """GET /healthz: the process answers."""
    return Json({"status": "ok"})


async def readyz(request: Request) -> Json:
    """GET /readyz: the database answers and its schema fits this code; a node of RabbitMQ accepts a connection."""
    database, broker = await asyncio.gather(_database(request), _broker())
    checks = {"database": database, "broker": broker}
    failed = [f"{name}: {what}" for name, what in checks.items() if what not in (OK, NOT_CHECKED)]
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
    """Check the broker, or wait for the check that already runs. A check takes a thread, and any number of probes
    without a login must not take all threads. Return OK, NOT_CHECKED, or why it is not ready.
    """
    loop = asyncio.get_running_loop()
    asked = _checks.get(loop)
    if asked is None:
        asked = _checks[loop] = loop.create_task(_check_broker())
        asked.add_done_callback(lambda _: _checks.pop(loop))
    with suppress(TimeoutError):
        async with asyncio.timeout(BROKER_SECONDS):
            return await asyncio.shield(asked)
    return CLOSED


async def _check_broker() -> str:
    try:
        urls = broker_addresses()
    except NotConfigured as error:
        return str(error)
    if not urls:
        return NOT_CHECKED
    if any(await asyncio.gather(*(run_in_threadpool(_answers, url) for url in urls.split(";")))):
        return OK
    return CLOSED


def _answers(url: str) -> bool:
    """Return whether a node accepts this process's login. Logs the reason if not."""
    try:
        with connected(url):
            return True
    except NoAnswer as error:
        _log_outage(error)
        return False
