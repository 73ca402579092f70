"""An actor whose results, errors, steps and messages are of the kind that databases choke on."""

import time
from typing import Any

import dramatiq
from dramatiq.errors import Retry

import callboard
from tests.faults.rig.actors import work
from tests.faults.rig.run_log import logged_run

NUL_AND_HALF = "a\x00b\ud800"


class Mute(Exception):
    """Its text can't be had."""

    def __str__(self) -> str:
        raise KeyError("no text")


class Leaving(Exception):
    """Its text would end the thread that asks for it."""

    def __str__(self) -> str:
        raise SystemExit("no text")


RESULTS = {
    "nul": "a\x00b",
    "half": "\ud800",
    "nan": {"price": [1.5, float("nan")]},
    "infinite": float("-inf"),
    "huge": "x" * 300_000,
    "object": object(),
}
ERRORS: dict[str, Exception] = {
    "odd error": ValueError(NUL_AND_HALF),
    "huge error": ValueError("y" * 5_000_000),
    "mute error": Mute(),
    "leaving error": Leaving(),
    "far retry": Retry(delay=10**30),
}


@dramatiq.actor(max_retries=1, min_backoff=10, max_backoff=20)
def odd(kind: str) -> Any:
    """Give a result, raise, say or send something odd; or nothing."""
    with logged_run():
        if kind in ERRORS:
            raise ERRORS[kind]
        if kind == "step":
            callboard.step(NUL_AND_HALF + "z" * 100_000)
            time.sleep(2.5)  # long enough to be written, and to be tried again if it could not be
        if kind == "child":
            dramatiq.get_broker().enqueue(work.message(1).copy(message_id=NUL_AND_HALF))
        if kind == "skip":
            raise callboard.Skip(NUL_AND_HALF)
        if kind == "deep":
            nested: list[Any] = []
            for _ in range(100_000):
                nested = [nested]
            return nested
        return RESULTS.get(kind)
