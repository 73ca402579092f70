"""The pipelines that `callboard demo` runs, their arguments, and the services that they call."""

import importlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

import httpcore

import callboard
from callboard.commands.local.processes import Child
from callboard.commands.services.ports import free_ports
from callboard.sql.pool import connect, database_address

#: Maximum seconds for which the start of a job is watched, and seconds between two reads.
START_SECONDS, LOOK_SECONDS = 10.0, 0.02


class Pipeline(NamedTuple):
    """A pipeline: its description; its module, which has `submit`, and `TABLES` if it needs tables; the arguments of
    `submit`; and the maximum values that its users want for the measured figures.
    """

    about: str
    module: str
    given: Mapping[str, Any]
    wanted: Mapping[str, float] = MappingProxyType({})

    def start(self) -> callboard.Job:
        """Create its tables and its job. Its actors are imported only now, so that they use the current broker."""
        module = importlib.import_module(f"callboard.actors.{self.module}")
        if tables := getattr(module, "TABLES", None):
            with connect(database_address()) as conn:
                conn.execute(tables)
        job: callboard.Job = module.submit(**self.given)
        return job


_AD_GROUPS = [(customer, group) for group in range(50) for customer in range(1, 21)]
_SYMBOLS = [f"{'S' if n % 25 else 'X'}{n:03}" for n in range(1, 101)]
_ELEMENTS = [
    f"{table}.{column}"
    for table in ("customer", "order", "payment", "account", "address")
    for column in ("id", "name", "email", "birth_date", "phone", "status", "amount", "currency")
]

PIPELINES = {
    "ads": Pipeline(
        "create 1,000 ads at an API that limits each customer", "theme_ads", {"ad_groups": _AD_GROUPS},
        {"first_progress_s": 10, "read_ms": 20},
    ),
    "stocks": Pipeline(
        "analyse 100 stocks and save a row per symbol and day", "stocks", {"symbols": _SYMBOLS, "capital": 10_000.0},
        {"seconds": 10, "first_progress_s": 3, "read_ms": 20},
    ),
    "audit": Pipeline("ask AI providers about a company, in five stages", "audit", {"company": "Acme"}),
    "pages": Pipeline(
        "fetch the front pages of a tenant's 150 domains", "pages",
        {"tenant": "tenant-a", "domains": [f"site-{n}.example" for n in range(150)]},
    ),
    "planning": Pipeline(
        "classify 40 data elements, each saved with its item's outcome", "planning",
        {"phase": "phase-1", "elements": _ELEMENTS}, {"first_progress_s": 2},
    ),
}  # fmt: skip


def watch_start(job: callboard.Job, began: float) -> dict[str, float]:
    """Read a job until it has progress. Return the seconds since `began` (monotonic), and the ms of a read."""
    reads, progress, now = [], 0.0, began
    while not progress and now < began + START_SECONDS:
        time.sleep(LOOK_SECONDS)
        before = time.monotonic()
        progress = job.status()["progress"]
        now = time.monotonic()
        reads.append(now - before)
    return {"first_progress_s": round(now - began, 2), "read_ms": round(1000 * median(reads), 1)}


def seconds(job: Mapping[str, Any]) -> float:
    """Return the duration of a finished job in seconds."""
    begin, end = (datetime.fromisoformat(job[time]) for time in ("created_at", "finished_at"))
    return round((end - begin).total_seconds(), 2)


def counted() -> dict[str, int]:
    """Return the counts of the services."""
    found: dict[str, int] = json.loads(httpcore.request("GET", f"{os.environ['REMOTE_URL']}/figures").content)
    return found


@contextmanager
def remote_world(folder: Path) -> Iterator[None]:
    """Run the services that the pipelines call, for a block. Sets REMOTE_URL to their address."""
    (port,) = free_ports(1)
    log = folder / "remote-world.log"
    world = Child("the remote world", log, "is there", "callboard.commands.local.remote_world", str(port))
    os.environ["REMOTE_URL"] = f"http://127.0.0.1:{port}"
    try:
        world.start().wait()
        yield
    finally:
        world.kill()
        del os.environ["REMOTE_URL"]
