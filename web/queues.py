"""Endpoints of RabbitMQ's queues and their dead letters, which all tenants share."""

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from callboard.middleware.rabbitmq import queue_admin
from callboard.middleware.rabbitmq.queue_admin import NoAnswer
from callboard.sql.pool import broker_addresses
from callboard.sql.reads import queries
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import IDS, ITEMS, NoQuery

T = TypeVar("T")


class PutBack(msgspec.Struct, forbid_unknown_fields=True):
    """How many dead letters to move, the oldest first."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=queue_admin.MAX_MOVED)] = queue_admin.MAX_MOVED


async def queues(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List the queues of all known actors and open jobs, with the waiting messages of each."""
    known = await call.read(queries.queues())
    rows, trouble = await run_in_threadpool(queue_admin.with_depths, broker_addresses(), known)
    return {"queues": rows, "trouble": trouble, "next": None}


async def dead_letters(call: Call[NoQuery, NoBody]) -> dict[str, Any]:
    """List the oldest dead letters of a queue, each with the error of its item. They stay in their queue."""
    queue = await _queue(call)
    found = await _ask(lambda addresses: queue_admin.dead_letters(addresses, queue))
    letters = [(letter, _item(letter.pop("of"))) for letter in found]
    errors = await call.read(queries.last_errors([item for _, item in letters if item]))
    return {"dead_letters": [_described(letter, item, errors) for letter, item in letters], "next": None}


async def put_back(call: Call[NoQuery, PutBack]) -> dict[str, Any]:
    """Move dead letters back to their queue: the item of each gets another attempt."""
    queue = await _queue(call)
    moved, left = await _ask(lambda addresses: queue_admin.put_back(addresses, queue, call.body.limit))
    return {"put_back": moved, "left": left}


async def _queue(call: Call[Any, Any]) -> str:
    """Return the queue in the path. Raises HTTPException 404 for a queue of no known actor: it is not Callboard's."""
    name = str(call.request.path_params["queue"])
    if name not in (row["name"] for row in await call.read(queries.queues())):
        raise HTTPException(404, f"no known actor has a queue {name[:40]!r}: GET /queues lists the known queues")
    return name


async def _ask(question: Callable[[str], T]) -> T:
    """Query RabbitMQ in a thread. Raises HTTPException 503 if it does not answer."""
    addresses = broker_addresses()
    if not addresses:
        raise HTTPException(503, queue_admin.NO_BROKER)
    try:
        return await run_in_threadpool(question, addresses)
    except NoAnswer as error:
        raise HTTPException(503, str(error)) from None


def _item(of: str | None) -> tuple[int, int] | None:
    """Return the job and the item of a dead letter, for a chunk its first item; None if `of` names none."""
    found = re.match(r"(\d{1,19})/(\d{1,10})(?:-\d+)?$", of or "", re.ASCII)
    job, item = (int(found[1]), int(found[2])) if found else (IDS + 1, 0)
    return (job, item) if job <= IDS and item <= ITEMS else None


def _described(
    letter: dict[str, Any], item: tuple[int, int] | None, errors: dict[tuple[int, int], dict[str, Any]]
) -> dict[str, Any]:
    job, position = item or (None, None)
    error = errors.get(item) if item else None
    text = error and f"{error['type'] or error['kind']}: {error['message']}"
    return {**letter, "job": job, "item": position, "error": text}
