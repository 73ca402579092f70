"""Functions that make stages, in small pieces, and an actor that the suite's other workers lack."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq

import callboard
from callboard.middleware.callbacks import stage_maker
from callboard.middleware.submission import submission
from tests.faults.rig.run_log import logged_run

submission.CHUNK_ITEMS = stage_maker.PAGE_ITEMS = 50


@dramatiq.actor(max_retries=0)
def summed(numbers: int) -> int:
    """What becomes of all results."""
    with logged_run():
        return numbers


def again(results: callboard.Results) -> Iterator[dict[str, Any]]:
    """Fan-out: two items of each result."""
    for one in results:
        for copy in (0, 1):
            yield {"number": 2 * one.result["number"] + copy, "fate": "result"}


def slowly(results: callboard.Results) -> Iterator[dict[str, Any]]:
    """The same, taking its time, and very much of it after some, until the file is there that CALLBOARD_TEST_GATE
    names.
    """
    gate = Path(os.environ["CALLBOARD_TEST_GATE"])
    for item in again(results):
        if not gate.exists():
            time.sleep(0.5 if item["number"] > 210 else 0.02)
        yield item


def gated(results: callboard.Results) -> Iterator[dict[str, Any]]:
    """The same; its items end when there is that file."""
    for item in slowly(results):
        yield {**item, "gate": os.environ["CALLBOARD_TEST_GATE"]}


def total(results: callboard.Results) -> list[int]:
    """Fan-in."""
    return [sum(one.result["number"] for one in results)]
