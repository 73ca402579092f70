"""Actors that save rows of a table of the app's own with the outcome of their item."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dramatiq

import callboard
from tests.support.pipeline_actors import note_run

broker = callboard.install()
for handler in logging.getLogger().handlers:
    handler.addFilter(callboard.LogContext())


class TransientError(Exception):
    """A failure that the next attempt mends."""


def save_mark(mark: str | None, item: int | None = None) -> None:
    now = callboard.current()
    callboard.save(
        "INSERT INTO saved VALUES (%s, %s, %s, %s)",
        (now.job, now.item if item is None else now.item + item, now.attempt, mark),
        item=item,
    )


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def saves(mark: str | None = None, fate: str = "succeed", sql: str = "", params: Any = None) -> None:
    """Save a mark, and a statement of the item's own; then fail once, for good, or skip."""
    note_run("saves")
    save_mark(mark)
    if sql:
        callboard.save(sql, params)
    logging.getLogger("shop.saving").info("100 %% saved in %s", fate)
    if fate == "fail" or (fate == "retry" and callboard.current().attempt == 1):
        raise TransientError(fate)
    if fate == "skip":
        raise callboard.Skip("not needed")


@dramatiq.actor(max_retries=0)
def forgetful(limit: str) -> None:
    """Save what is refused where it is called."""
    if limit == "bytes":
        callboard.save("INSERT INTO saved (mark) VALUES (%s)", ("x" * 17 * 2**20,))
    elif limit == "statements":
        for _ in range(1001):
            save_mark(None)
    elif limit == "commit":
        callboard.save("/* harmless */ COMMIT")
    elif limit == "value":
        callboard.save("INSERT INTO saved (mark) VALUES (%s)", (threading.Lock(),))
    elif limit == "changed":
        row = ["as it was", "x"]
        callboard.save("INSERT INTO saved (mark) VALUES (%s || %s)", row)
        row[0] = "changed"


@dramatiq.actor(max_retries=0)
async def saves_gently(mark: str) -> None:
    await asyncio.sleep(0.01)
    save_mark(mark)
    if mark == "skipped":
        raise callboard.Skip("not needed")


@dramatiq.actor(max_retries=0)
def saves_in_threads(count: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(callboard.in_context(save_mark), [None] * count))


@dramatiq.actor(max_retries=1, min_backoff=50, max_backoff=100)
@callboard.batch
def saves_together(items: list[dict[str, Any]]) -> list[Any]:
    for number, item in enumerate(items):
        save_mark(item["mark"], number)
    return [TransientError("again") if item.get("fate") == "fail" else None for item in items]
