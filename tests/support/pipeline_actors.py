"""Actors of the pipeline tests: each item says what is to become of it, and each run is noted in a table of its own."""

import asyncio
import gc
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dramatiq
import psycopg
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import StubBackend

import callboard
from tests.support.boot_death import wait_for_boot

broker = callboard.install()
_local = threading.local()
MUTEX = ConcurrentRateLimiter(StubBackend(), "outcomes", limit=1)


class TransientError(Exception):
    """A failure that the next attempt mends."""


def note_run(what: str) -> None:
    """Side effect: one row a run, committed at once, so that it outlives whatever happens to the worker."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    now = callboard.current()
    _local.connection.execute(
        "INSERT INTO runs (job, item, attempt, what) VALUES (%s, %s, %s, %s)", (now.job, now.item, now.attempt, what)
    )


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def work(number: int, fate: str = "succeed", gate: str = "") -> dict[str, int] | None:
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    if fate == "fail":
        raise ValueError(f"number {number} can't be worked on")
    if fate == "retry" and callboard.current().attempt == 1:
        raise TransientError(f"number {number} needs another try")
    if fate == "long" and callboard.current().attempt == 1:
        raise TransientError("x" * 2_000_000)
    if fate == "skip":
        raise callboard.Skip("already done")
    return {"number": number} if fate == "result" else None


@dramatiq.actor(max_retries=0)
def noted(number: int, seconds: float = 0.0, gate: str = "") -> None:
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    note_run("noted")
    time.sleep(seconds)


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def told(call: dict[str, Any]) -> dict[str, Any]:
    note_run(f"told {call['id']}")
    if call["name"] == "flaky" and callboard.current().attempt == 1:
        raise TransientError("told once more")
    return call


@dramatiq.actor(max_retries=0)
def slow(number: int, seconds: float) -> None:
    callboard.step(f"sleeping {seconds} s")
    time.sleep(seconds)


@dramatiq.actor(max_retries=0)
def stands() -> None:
    """At one step until that was seen, for five minutes at most."""
    callboard.step("standing still")
    for _ in range(1_000):
        if seen():
            break
        time.sleep(0.3)


def seen() -> bool:
    """Whether the test has seen what this item said."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        mine = (callboard.current().job,)
        return connection.execute("SELECT 1 FROM runs WHERE job = %s AND what = 'seen'", mine).rowcount > 0


@dramatiq.actor(max_retries=0)
def counts(pages: int | None) -> None:
    """Says how far it is until that was seen, for five minutes at most."""
    for page in range(6_000):
        callboard.progress(page if pages is None else 2.5, pages)
        if seen():
            return
        time.sleep(0.05)


@dramatiq.actor(max_retries=0)
async def counts_gently(pages: int) -> None:
    callboard.progress(7, pages)
    for _ in range(6_000):
        if seen():
            return
        await asyncio.sleep(0.05)


@dramatiq.actor(max_retries=0)
def deadly(number: int) -> None:
    if number == 0:
        wait_for_boot()
        os._exit(9)
    time.sleep(0.05)


@dramatiq.actor(max_retries=1, min_backoff=50, max_backoff=50)
def parent(number: int, children: int, *, fails: bool = False) -> None:
    for n in range(children):
        noted.send(n)
    if fails:
        raise ValueError("after sending")


@dramatiq.actor(max_retries=0)
def in_threads(children: int) -> int:
    """Sends from threads of its own."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(noted.send, range(children)))
    return children


@dramatiq.actor(max_retries=0)
def in_a_process(number: int) -> int | None:
    """Sends from a child process."""
    child = multiprocessing.get_context("fork").Process(target=noted.send, args=(number,))
    child.start()
    child.join()
    return child.exitcode


@dramatiq.actor(max_retries=0)
def forks(how: str) -> int:
    """Its child leaves the actor; returns the exit code of the child."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if how == "exit":
        sys.exit(3)
    if how == "raise":
        raise ValueError("in a child")
    if how == "skip":
        raise callboard.Skip("in a child")
    return 4711


@dramatiq.actor(max_retries=0)
def asks_to_wait(times: int) -> int:
    """Is postponed so many times; what it sends then is not sent."""
    attempt = callboard.current().attempt
    noted.send(attempt)
    if attempt <= times:
        raise callboard.Postpone(0.05, f"the API says 429, {attempt}")
    return attempt


@dramatiq.actor(max_retries=0)
async def holds_back(number: int) -> int:
    """Holds back its lane, or its job, and comes back later."""
    if callboard.current().attempt == 1:
        callboard.hold(1, "the API says 429")
        raise callboard.Postpone(0.5)  # a thread beside it stores what is held back
    return callboard.current().attempt


@dramatiq.actor(max_retries=0)
def first_holds_back(number: int) -> None:
    """The first item holds back its job; the others take a moment."""
    if number:
        time.sleep(0.05)
    else:
        callboard.hold(5, "enough")


@dramatiq.actor(max_retries=0)
async def postpones_for_long() -> None:
    raise callboard.Postpone(86_400, "come back tomorrow")


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
def on_exhausted(message: dict[str, object], tries: dict[str, int]) -> None:
    note_run(f"on_exhausted {tries['retries']} of {tries['max_retries']}")


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
@callboard.batch
def together(items: list[dict[str, Any]]) -> list[Any] | None:
    """Says of each item what it says; `raise` and `short` hold for all of them. Each call is noted.

    With `send` it sends a message for each item; with `save` the statement for that item.
    """
    note_run("together " + " ".join(str(item["number"]) for item in items))
    for position, item in enumerate(items):
        if item.get("send"):
            noted.send(item["number"])
        if "save" in item:
            callboard.save(item["save"], item=position)
    fates = [item.get("fate") for item in items]
    if "raise" in fates and len(items) > 1:
        raise TransientError("all of them again")
    if "short" in fates and callboard.current().attempt == 1:
        return []
    ends = {
        "fail": ValueError("not this one"), "skip": callboard.Skip("not needed"), None: {"of": len(items)},
        "class": LookupError, "postpone": callboard.Postpone(0.01, "not yet") if len(items) > 1 else "alone",
    }  # fmt: skip
    return [
        TransientError("again") if fate == "retry" and len(items) > 1 else ends.get(fate, "alone") for fate in fates
    ]


@dramatiq.actor(max_retries=50, min_backoff=50, max_backoff=100)
def limited(number: int) -> None:
    with MUTEX.acquire():
        time.sleep(0.1)


@dramatiq.actor(max_retries=0)
def leaves() -> None:
    raise SystemExit("an actor may not end the worker")


@dramatiq.actor(max_retries=0)
def bad_text(kind: str) -> None:
    raise ValueError({"nul": "a \x00 in it", "surrogate": "half \ud800 a pair"}[kind])


@dramatiq.actor(max_retries=0)
def bad_result(kind: str) -> object:
    if kind != "nul":
        noted.send(1)
    return {"large": "x" * 300_000, "object": object(), "nul": "a \x00 in it"}[kind]


@dramatiq.actor(max_retries=0, results="strict")
def strict_result() -> str:
    noted.send(1)
    return "x" * 300_000


@dramatiq.actor(max_retries=0, time_limit=300)
def endless() -> None:
    while True:
        time.sleep(0.01)


@dramatiq.actor(max_retries=2, min_backoff=50, max_backoff=100)
def stubborn(number: int, wins_at: int) -> int:
    """Fails until the attempt that wins; each run is noted."""
    attempt = callboard.current().attempt
    note_run("stubborn")
    if attempt < wins_at:
        raise TransientError(f"attempt {attempt}")
    return attempt


@dramatiq.actor(max_retries=5, throws=(KeyError,))
def throws() -> None:
    raise KeyError("not worth another try")


@dramatiq.actor(retry_when=lambda retries, error: retries < 1 and isinstance(error, TransientError), min_backoff=50)
def picky() -> None:
    raise TransientError("again, but once")


@dramatiq.actor(max_retries=1)
def asks_for_time(seconds: float) -> None:
    if callboard.current().attempt == 1:
        raise dramatiq.errors.Retry("later", delay=int(seconds * 1000))


@dramatiq.actor(max_retries=3)
def struck_late(number: int) -> int:
    """Succeeds; then its time limit strikes in a hook. See `StrikesLate`."""
    note_run("struck_late")
    return number


class StrikesLate(dramatiq.Middleware):
    """A hook after the actor that takes so long that the time limit strikes in it."""

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: Any = None
    ) -> None:
        if message.actor_name == "struck_late" and exception is None:
            raise dramatiq.middleware.TimeLimitExceeded


broker.add_middleware(StrikesLate())


@dramatiq.actor(max_retries=0)
def base_error() -> None:
    raise GeneratorExit("an odd one")


@dramatiq.actor(max_retries=0)
def hasty(number: int) -> None:
    callboard.send_now(noted.message(number))
    raise ValueError("after sending at once")


@dramatiq.actor(max_retries=0)
def opens_a_job(number: int) -> int:
    with callboard.job(f"inner {number}") as inner:
        for n in range(number):
            noted.send(n)
    return inner.id


def facts() -> list[Any]:
    now = callboard.current()
    return [now.tenant, now.key, now.metadata]


@dramatiq.actor(max_retries=0)
def knows(number: int) -> list[Any]:
    return facts()


@dramatiq.actor(max_retries=0)
async def knows_gently(number: int) -> list[Any]:
    return facts()


@dramatiq.actor(max_retries=0)
def frozen(number: int) -> int:
    return gc.get_freeze_count()


def wait_for_gate(folder: str, number: int) -> None:
    """Say that an item has begun, and wait until the test lets it go on."""
    Path(folder, f"begun-{number}").touch()
    while not Path(folder, "gate").exists():
        time.sleep(0.02)


@dramatiq.actor(max_retries=0)
async def says_gently(number: int, folder: str) -> list[Any]:
    """Call all that an item may call, when the test lets it."""
    await asyncio.to_thread(wait_for_gate, folder, number)
    callboard.step("on its way")
    callboard.progress(1, 2)
    callboard.save("INSERT INTO runs (what) VALUES (%s)", (folder,))
    callboard.hold(0.1)
    noted.send(number)
    answer = [*facts(), callboard.current().cancelled]
    await asyncio.to_thread(Path(folder, f"said-{number}").touch)
    if number == 0:
        raise callboard.Skip("it has nothing to do")
    if number == 1 and callboard.current().attempt == 1:
        raise callboard.Postpone(0.1)
    return answer


@dramatiq.actor(max_retries=0)
async def gently(number: int) -> int:
    """An async actor: what it asks and sends is its item's, on another thread."""
    callboard.step("awaiting")
    await asyncio.sleep(0.01)
    noted.send(number)
    return callboard.current().item
