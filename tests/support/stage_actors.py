"""Actors of the tests of stages."""

import time
from pathlib import Path
from typing import Any

import dramatiq

import callboard
from callboard.middleware.submission import submission
from tests.support.pipeline_actors import noted

#: Items that are stored at a time: fewer than else, so that few have to run.
submission.CHUNK_ITEMS = 500
broker = callboard.install()


@dramatiq.actor(max_retries=0)
def generate(company: str, count: int) -> list[str]:
    """Queries for a company."""
    return [f"{company} {n}" for n in range(count)]


@dramatiq.actor(max_retries=0)
def ask(query: str, provider: str, fails: str = "", gate: str = "") -> dict[str, Any]:
    """A provider's answer; it fails as long as the file `fails` is there, and waits for the file `gate`."""
    callboard.step(f"asking {provider}")
    if fails and Path(fails).exists() and provider == "two":
        raise ConnectionError(f"{provider} is away")
    while gate and not Path(gate).exists() and not callboard.current().cancelled:
        time.sleep(0.02)
    return {"query": query, "provider": provider, "length": len(query)}


@dramatiq.actor(max_retries=0)
def analyse(query: str, provider: str, length: int) -> int:
    """What is known of an answer."""
    return length


@dramatiq.actor(max_retries=0)
def score(lengths: list[int]) -> dict[str, int]:
    """All answers together."""
    return {"answers": len(lengths), "sum": sum(lengths)}


@dramatiq.actor(max_retries=0)
def spreads(number: int) -> int:
    """Sends a child of its own."""
    noted.send(number)
    return number


@dramatiq.actor(max_retries=0)
def number(value: int) -> int:
    """The number itself."""
    return value


@dramatiq.actor(max_retries=0)
def heard(told: dict[str, Any]) -> None:
    """Is told of a job's end."""
