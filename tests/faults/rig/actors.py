"""Actors of the fault suite: each logs its run, then does what its item says."""

import ctypes
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import psycopg
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import StubBackend

import callboard
from tests.faults.rig.run_log import RUN_LOG, logged_run
from tests.support.boot_death import die, wait_for_boot

broker = callboard.install()
#: Ways to die.
DEATHS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(9), "segfault": lambda: ctypes.string_at(0), "kill": die,
}  # fmt: skip
#: The file beside the run log to which `deadly` adds the way to die, before it does.
WAYS = "ways"
#: Seconds between two looks at a gate: many threads look at it for as long as a fault takes.
GATE_SECONDS = 0.1
MUTEX = ConcurrentRateLimiter(StubBackend(), "faults", limit=1)


class TransientError(Exception):
    """A failure that the next attempt does not have."""


class Once(Exception):
    """A failure until somebody retries the item by hand."""


@dramatiq.actor(throws=Once, max_retries=2, min_backoff=50, max_backoff=100)
def work(number: int, fate: str = "succeed", seconds: float = 0.0, gate: str = "") -> dict[str, int] | None:
    """Take some seconds, and wait until the file `gate` is there or the job is stopped; then fail for good, once, or
    until retried by hand, skip, give a result, or just succeed. `{attempt}` in the name of the file is the attempt's.
    """
    gate = gate.replace("{attempt}", str(callboard.current().attempt))
    with logged_run():
        time.sleep(seconds)
        while gate and not Path(gate).exists() and not callboard.current().cancelled:
            time.sleep(GATE_SECONDS)
        if fate == "fail":
            raise ValueError(f"number {number} can't be worked on")
        if fate == "once" and callboard.current().attempt == 1:
            raise Once(f"number {number} needs a human")
        if fate == "retry" and callboard.current().attempt == 1:
            raise TransientError(f"number {number} needs another try")
        if fate == "skip":
            raise callboard.Skip("already done")
        return {"number": number} if fate == "result" else None


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def saves(number: int, fate: str = "succeed", seconds: float = 0.0) -> None:
    """Save a row, or one that the table refuses; take some seconds; then end as its fate is."""
    now = callboard.current()
    row = (now.job, now.item, now.attempt, fate)
    with logged_run():
        callboard.save("INSERT INTO saved (job, item, attempt, fate) VALUES (%s, %s, %s, %s)", row)
        time.sleep(seconds)
        if fate == "fail" or (fate == "retry" and now.attempt == 1):
            raise TransientError(f"number {number} needs another try")
        if fate == "skip":
            raise callboard.Skip("already done")


@dramatiq.actor(throws=Once, max_retries=2, min_backoff=50, max_backoff=100)
def serve(customer: str, fate: str = "succeed", seconds: float = 0.0, gate: str = "") -> None:
    """Take some seconds for a customer, and wait until the file `gate` is there; or fail once."""
    with logged_run():
        time.sleep(seconds)
        while gate and not Path(gate).exists():
            time.sleep(GATE_SECONDS)
        if fate == "retry" and callboard.current().attempt == 1:
            raise TransientError(f"{customer} needs another try")


@dramatiq.actor(max_retries=0)
def leaves(number: int) -> None:
    """Work for long, and stop early if the job is cancelled."""
    with logged_run():
        while not callboard.current().cancelled:
            time.sleep(0.05)
        raise callboard.Skip("not wanted any more")


def in_hand() -> bool:
    """Whether the record has it that this item is being worked on."""
    now = callboard.current()
    with psycopg.connect(os.environ["DATABASE_URL"]) as conn:
        found = conn.execute(
            "SELECT FROM callboard.running WHERE (job_id, item, attempt) = (%s, %s, %s)",
            (now.job, now.item, now.attempt),
        )
        return found.rowcount > 0


@dramatiq.actor(max_retries=0)
def deadly(number: int, how: str, seconds: float = 0.0, *, known: bool = False) -> None:
    """Kill this very process, after some seconds, or when it is `known` that the item is in hand. Each attempt takes
    the next of several ways.
    """
    ways = how.split()
    how = ways[min(callboard.current().attempt, len(ways)) - 1]
    with logged_run():
        time.sleep(seconds)
        while known and not in_hand():
            time.sleep(0.05)
        if end := DEATHS.get(how):
            wait_for_boot()
            with (Path(os.environ[RUN_LOG]) / WAYS).open("a") as file:
                print(how, file=file)
            end()


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
@callboard.batch
def uploads(items: list[dict[str, Any]]) -> list[Any]:
    """Take some seconds for all of them and wait for the files `gate`, or kill this very process; their numbers are
    those of their items.
    """
    with logged_run(*(item["number"] for item in items)):
        time.sleep(max(item.get("seconds", 0.0) for item in items))
        for gate in {item["gate"] for item in items if item.get("gate")}:
            while not Path(gate).exists():
                time.sleep(0.02)
        if any(item.get("how") == "kill" for item in items):
            while not in_hand():
                time.sleep(0.05)
            die()
        return [ValueError("refused") if item.get("fate") == "fail" else None for item in items]


@dramatiq.actor(max_retries=0, time_limit=3_600_000)
def hung(port: int) -> None:
    """Wait for ever for bytes that never come."""
    with logged_run(), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(1)


@dramatiq.actor(max_retries=0)
def parent(number: int, children: int) -> None:
    """Send children; they go when it succeeds."""
    with logged_run():
        for child in range(children):
            work.send(child)


@dramatiq.actor(max_retries=0)
def told(call: dict[str, Any]) -> str:
    """Be called when a job ended; the callback's id is its result."""
    with logged_run():
        return str(call["id"])


@dramatiq.actor(max_retries=20, min_backoff=50, max_backoff=100)
def limited(number: int) -> None:
    """One at a time in a process; the others are raised out and tried again."""
    with logged_run(), MUTEX.acquire():
        time.sleep(0.02)
