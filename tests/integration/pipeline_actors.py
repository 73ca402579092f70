"""Actors of the pipeline tests: each item says what is to become of it, and each run is noted in a table of its own."""

import os
import threading
import time

import dramatiq
import psycopg

import callboard

broker = callboard.install()
_local = threading.local()


class NotYet(Exception):
    """A failure that the next attempt mends."""


def note_run(what: str) -> None:
    """Side effect: one row a run, committed at once, so that it outlives whatever happens to the worker."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    now = callboard.current()
    _local.connection.execute(
        "INSERT INTO runs (job, item, attempt, what) VALUES (%s, %s, %s, %s)",
        (now.job, now.item, now.attempt, what),
    )


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def work(number: int, fate: str = "succeed") -> dict[str, int] | None:
    if fate == "fail":
        raise ValueError(f"number {number} can't be worked on")
    if fate == "retry" and callboard.current().attempt == 1:
        raise NotYet(f"number {number} needs another try")
    if fate == "skip":
        raise callboard.Skip("already done")
    return {"number": number} if fate == "result" else None


@dramatiq.actor(max_retries=0)
def noted(number: int, seconds: float = 0.0) -> None:
    note_run("noted")
    time.sleep(seconds)


@dramatiq.actor(max_retries=0)
def slow(number: int, seconds: float) -> None:
    callboard.step(f"sleeping {seconds} s")
    time.sleep(seconds)


@dramatiq.actor(max_retries=0)
def deadly(number: int) -> None:
    if number == 0:
        os._exit(9)
    time.sleep(0.05)


@dramatiq.actor(max_retries=1, min_backoff=50, max_backoff=50)
def parent(number: int, children: int, *, fails: bool = False) -> None:
    for n in range(children):
        noted.send(n)
    if fails:
        raise ValueError("after sending")


@dramatiq.actor(max_retries=0)
def add(first: int, second: int) -> int:
    return first + second


@dramatiq.actor(max_retries=0)
def on_failure(message: dict[str, object], error: dict[str, str]) -> None:
    note_run(f"on_failure {error['type']}")


@dramatiq.actor(max_retries=0)
def on_success(message: dict[str, object], result: object) -> None:
    note_run(f"on_success {result}")


@dramatiq.actor(max_retries=0)
def leaves() -> None:
    raise SystemExit("an actor may not end the worker")


@dramatiq.actor(max_retries=0)
def bad_text(kind: str) -> None:
    raise ValueError({"nul": "a \x00 in it", "surrogate": "half \ud800 a pair"}[kind])


@dramatiq.actor(max_retries=0)
def bad_result(kind: str) -> object:
    return {"large": "x" * 300_000, "object": object(), "nul": "a \x00 in it"}[kind]


@dramatiq.actor(max_retries=0, time_limit=300)
def endless() -> None:
    while True:
        time.sleep(0.01)
