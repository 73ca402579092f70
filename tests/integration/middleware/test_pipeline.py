"""The whole path on real services: rows, RabbitMQ, worker processes, outcomes, and the page's numbers."""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psycopg
import pytest

import callboard
from callboard.commands.services.child_process import Process
from callboard.commands.services.ports import free_ports
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES, JOB_FINAL
from tests.support.clients import client
from tests.support.workers import StartWorker

ACTORS = "tests.support.pipeline_actors"
MIXED = 4_000
#: Items of each of several jobs.
JOINT = 1_500


def fate(number: int) -> str:
    """10 % fail for good, 10 % succeed on a retry, 5 % are skipped."""
    return {0: "fail", 1: "retry"}.get(number % 10, "skip" if number % 20 == 2 else "succeed")


def mixed(count: int = MIXED) -> Iterator[dict[str, Any]]:
    return ({"number": n, "fate": fate(n)} for n in range(count))


def assert_mixed(status: dict[str, Any], count: int = MIXED) -> None:
    fates = Counter(fate(n) for n in range(count))
    assert status["state"] == "completed"
    assert status["total"] == count
    assert status["failed"] == fates["fail"]
    assert status["skipped"] == fates["skip"]
    assert status["succeeded"] == fates["succeed"] + fates["retry"]
    assert status["retries"] == 2 * fates["fail"] + fates["retry"]
    assert sum(status[state] for state in ITEM_STATES) == count


def under_way(status: dict[str, Any]) -> bool:
    """Whether some items have ended and others have not."""
    return bool(0 < status["succeeded"] + status["failed"] + status["skipped"] < status["total"])


def verified(url: str) -> dict[str, Any]:
    with connect(url) as conn:
        return queries.run(conn, queries.verify())


def drift(url: str) -> list[Any]:
    return list(verified(url)["drift"])


@contextmanager
def served(environment: dict[str, str], log: Path) -> Iterator[Callable[[str], Any]]:
    """The web app in a process of its own; gives a function that GETs a path as JSON."""
    port = free_ports(1)[0]
    options = ["--open-to-everyone", "--port", str(port)]
    command: list[str | Path] = [Path(sys.executable).with_name("callboard"), "serve", *options]
    process = Process(command, log=log, env={**os.environ, **environment})

    def get(path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=300) as answer:
            return json.load(answer)

    def up() -> bool:
        try:
            return bool(get("/healthz"))
        except OSError:
            return False

    process.start().wait_ready(up, 300)
    try:
        yield get
    finally:
        process.stop()


@pytest.mark.parametrize("way", ["direct", "pooled"])
def test_every_count_of_a_mixed_job_is_exact(
    way: str, environment: dict[str, str], worker: StartWorker, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Counts, attempts, the identity in 200 readings over HTTP, and the end soon after the last item."""
    if way == "pooled":
        pooled = request.getfixturevalue("pooled_url")
        environment = {**environment, "DATABASE_URL": pooled, "CALLBOARD_PREPARE": "off"}
    worker(ACTORS, env=environment, processes=2)
    # The last ones wait until enough was read while others had ended.
    gate = tmp_path / "gate"
    held = ({**one, "gate": str(gate) if one["number"] >= MIXED - 8 else ""} for one in mixed())
    with served(environment, tmp_path / "web.log") as get, client(environment, ["work"]):
        job = callboard.submit("work", held).id
        readings = [get(f"/api/jobs/{job}")]
        while readings[-1]["state"] not in JOB_FINAL or len(readings) < 200:
            readings.append(get(f"/api/jobs/{job}"))
            if sum(map(under_way, readings)) >= 10:
                gate.touch()
        final = get(f"/api/jobs/{job}")
    for reading in readings:
        assert sum(reading[state] for state in ITEM_STATES) == reading["total"], reading
    assert_mixed(final)
    url = environment["DATABASE_URL"]
    assert drift(url) == []
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT kind::text, count(*) FROM callboard.attempts GROUP BY 1").fetchall()
        attempts: dict[str, int] = dict(rows)
        late = conn.execute(
            "SELECT extract(epoch FROM finished_at - (SELECT max(finished_at) FROM callboard.items))"
            " FROM callboard.jobs"
        ).fetchone()
    assert attempts == {"failed": 3 * MIXED // 10 + MIXED // 10, "skipped": MIXED // 20}
    assert late is not None
    assert float(late[0]) < 60


def test_a_worker_killed_in_the_middle_loses_nothing(
    environment: dict[str, str], worker: StartWorker, tmp_path: Path
) -> None:
    """SIGKILL to the whole process group half-way, and again later; every item ran, each counts once."""
    url = environment["DATABASE_URL"]
    make_runs_table(url)
    running = worker(ACTORS)
    with client(environment, ["noted"]):
        gate = tmp_path / "gate"  # the last one waits until the worker was killed twice
        items = ({"number": n, "seconds": 0.002, "gate": str(gate) if n == 3999 else ""} for n in range(4000))
        job = callboard.submit("noted", items)
        for part in (1000, 2500):
            while job.status()["succeeded"] < part:
                assert job.status()["state"] not in JOB_FINAL
            running.kill()
            assert job.status()["state"] == "running"
            running.start()
        gate.touch()
        status = job.wait(300)
    assert status["succeeded"] == status["total"] == 4000
    assert drift(url) == []
    with psycopg.connect(url) as conn:
        ran = conn.execute("SELECT count(DISTINCT item), count(*) FROM runs").fetchone()
    assert ran is not None
    assert ran[0] == 4000
    assert ran[1] >= 4000


def make_runs_table(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("CREATE TABLE runs (job bigint, item int, attempt int, what text)")


def test_three_jobs_at_once_all_move_and_share_few_connections(
    environment: dict[str, str], worker: StartWorker, tmp_path: Path
) -> None:
    worker(ACTORS, processes=2)
    gate = tmp_path / "gate"
    with client(environment, ["work"]) as broker, connect(environment["DATABASE_URL"]) as conn:
        jobs = [callboard.submit("work", ({**one, "gate": str(gate)} for one in mixed(JOINT))) for _ in range(3)]
        most, seen = 0, []
        gate.touch()
        while any(status["state"] not in JOB_FINAL for status in (job.status() for job in jobs)):
            row = conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            ).fetchone()
            assert row is not None
            most = max(most, row[0])
            seen.append([job.status()["succeeded"] for job in jobs])
        for job in jobs:
            assert_mixed(job.status(), JOINT)
        own = broker.runtime.process.pool.get_stats()["pool_size"]
    assert any(all(counts) and max(counts) < 0.85 * JOINT for counts in seen), "one job had to wait for another"
    assert most <= 2 * 4 + 4, (most, own)
    assert drift(environment["DATABASE_URL"]) == []
