"""What an answer costs while many watch one web process; watchers and caller are processes of their own."""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from urllib.parse import urlsplit

import httpx

from callboard.commands.services import ports
from callboard.commands.services.child_process import wait_until
from callboard.sql.pool import Conn, connect
from tests.bench.rig import Rig
from tests.support.jobs import make_job, record

WATCHERS, JOBS, SECONDS = 1_000, 40, 10.0
#: One of so many watchers reads what it gets: the others must not take the processor from the server.
READS = 25


def table(rig: Rig) -> Iterator[str]:
    """Rows of a Markdown table, each as it is measured."""
    yield "| watchers | of | answer p50 | p95 | change to watcher p95 | loop lag p99 |"
    yield "|---|---|---|---|---|---|"
    with connect(rig.database_url) as conn, _served(rig) as address:
        jobs = [make_job(conn, 100_000, published=0) for _ in range(JOBS)]
        single = [make_job(conn, 10, published=0) for _ in range(WATCHERS)]
        lists = [f"/api/v1/events?limit={limit}" for limit in range(20, 30)]
        several = [*(f"/api/v1/jobs/{job}/events" for job in jobs), *lists]
        items = count()
        for what, paths in (
            ("nothing", []),
            ("one job", several[:1]),
            (f"{JOBS} jobs and {len(lists)} lists", several),
            (f"{WATCHERS} jobs", [f"/api/v1/jobs/{job}/events" for job in single]),
        ):
            yield _row(address, conn, jobs, items, what, paths)


def _row(address: str, conn: Conn, jobs: list[int], items: Iterator[int], what: str, paths: list[str]) -> str:
    watching = [sys.executable, "-m", "tests.bench.watchers", "watch", address, *paths]
    watchers = subprocess.Popen(watching, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)
    assert watchers.stdin is not None
    assert watchers.stdout is not None
    watchers.stdout.readline()
    httpx.get(f"{address}/lag")
    caller = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.watchers", "call", address, *(f"/api/v1/jobs/{job}" for job in jobs)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while caller.poll() is None:
        for job in jobs:
            record(conn, job, {"succeeded": [next(items)]})
        time.sleep(0.7)
    times = json.loads(caller.communicate()[0])
    delays = json.loads(watchers.communicate("\n")[0])
    lag = httpx.get(f"{address}/lag").json()["p99"]
    p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
    late = f"{statistics.quantiles(delays, n=20)[-1]:.2f} s" if delays else "–"
    number = WATCHERS if paths else 0
    return f"| {number:,} | {what} | {1000 * p50:.1f} ms | {1000 * p95:.1f} ms | {late} | {lag:.0f} ms |"


@contextmanager
def _served(rig: Rig) -> Iterator[str]:
    (port,) = ports.free_ports(1)
    app = ["tests.support.lag_app:app", "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen([sys.executable, "-m", "uvicorn", *app], env={**os.environ, **rig.environment})
    address = f"http://127.0.0.1:{port}"
    try:
        assert wait_until(lambda: answers(address), 60)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def answers(address: str) -> bool:
    """Whether an app serves at this address."""
    try:
        return httpx.get(f"{address}/healthz").is_success
    except httpx.TransportError:
        return False


def _call(address: str, *paths: str) -> None:
    """Ask for jobs for a while, and print how long each answer took."""
    times: list[float] = []
    end = time.monotonic() + SECONDS
    with httpx.Client(base_url=address, timeout=60) as client:
        while time.monotonic() < end:
            began = time.perf_counter()
            client.get(paths[len(times) % len(paths)]).raise_for_status()
            times.append(time.perf_counter() - began)
            time.sleep(0.01)
    print(json.dumps(times))


async def _watch(address: str, *paths: str) -> None:
    """Watch until a line comes in, and print how old the changes were that came."""
    delays: list[float] = []
    tasks = []
    for number in range(WATCHERS if paths else 0):
        opened = _open(address, paths[number % len(paths)])
        reader, writer = await opened
        tasks.append(asyncio.create_task(_follow(reader, writer, None if number % READS else delays)))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(json.dumps(delays))
    os._exit(0)


async def _open(address: str, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    url = urlsplit(address)
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=2**20)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
    await reader.readuntil(b"data: ")
    return reader, writer


async def _follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delays: list[float] | None) -> None:
    before: dict[int, int] = {}
    while delays is None:
        await reader.read(2**16)
    while True:
        line = await reader.readline()
        if line.startswith(b"data: "):
            told = json.loads(line.removeprefix(b"data: "))
            for job in told.get("jobs", [told]):
                if job["succeeded"] > before.get(job["id"], job["succeeded"]):
                    changed = datetime.fromisoformat(job["updated_at"])
                    delays.append((datetime.now(UTC) - changed).total_seconds())
                before[job["id"]] = job["succeeded"]


if __name__ == "__main__":
    if sys.argv[1] == "watch":
        asyncio.run(_watch(*sys.argv[2:]))
    else:
        _call(*sys.argv[2:])
