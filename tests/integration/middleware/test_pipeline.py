"""The whole path on real services: rows, RabbitMQ, worker processes, outcomes, and the page's numbers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg

import callboard
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from callboard.sql.states import ITEM_STATES, JOB_FINAL
from tests.support.clients import client
from tests.support.webapp import open_app, served
from tests.support.workers import StartWorker, wait_until

ACTORS = "tests.support.pipeline_actors"
MIXED = 400
#: Items of each of several jobs, and how many messages lie ready at most, so that the jobs take turns.
JOINT, DEPTH = 300, 100


def fate(number: int) -> str:
    """10 % fail for good, 10 % succeed on a retry, 5 % are skipped."""
    return {0: "fail", 1: "retry"}.get(number % 10, "skip" if number % 20 == 2 else "succeed")


def mixed(count: int) -> Iterator[dict[str, Any]]:
    return ({"number": n, "fate": fate(n)} for n in range(count))


def assert_mixed(status: dict[str, Any], count: int) -> None:
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


def drift(url: str) -> list[Any]:
    with connect(url) as conn:
        return list(queries.run(conn, queries.verify())["drift"])


def test_every_count_of_a_mixed_job_is_exact_through_a_pooler(
    environment: dict[str, str], pooled_url: str, worker: StartWorker, tmp_path: Path
) -> None:
    """Counts, attempts, the identity in 200 readings over HTTP, and the end soon after the last item."""
    environment = {**environment, "DATABASE_URL": pooled_url, "CALLBOARD_PREPARE": "off"}
    worker(ACTORS, env=environment, processes=2)
    # The last ones wait until enough was read while others had ended.
    gate = tmp_path / "gate"
    held = ({**one, "gate": str(gate) if one["number"] >= MIXED - 8 else ""} for one in mixed(MIXED))
    with served(open_app(pooled_url)) as address, httpx.Client(base_url=address) as web, client(environment, ["work"]):
        job = callboard.submit("work", held).id
        readings = [web.get(f"/api/jobs/{job}").json()]
        while readings[-1]["state"] not in JOB_FINAL or len(readings) < 200:
            readings.append(web.get(f"/api/jobs/{job}").json())
            if sum(map(under_way, readings)) >= 10:
                gate.touch()
        final = web.get(f"/api/jobs/{job}").json()
    for reading in readings:
        assert sum(reading[state] for state in ITEM_STATES) == reading["total"], reading
    assert_mixed(final, MIXED)
    assert drift(pooled_url) == []
    with psycopg.connect(pooled_url) as conn:
        rows = conn.execute("SELECT kind::text, count(*) FROM callboard.attempts GROUP BY 1").fetchall()
        attempts: dict[str, int] = dict(rows)
        late = conn.execute(
            "SELECT extract(epoch FROM finished_at - (SELECT max(finished_at) FROM callboard.items))"
            " FROM callboard.jobs"
        ).fetchone()
    assert attempts == {"failed": 3 * MIXED // 10 + MIXED // 10, "skipped": MIXED // 20}
    assert late is not None
    assert float(late[0]) < 60


def test_three_jobs_at_once_all_move_and_share_few_connections(
    environment: dict[str, str], worker: StartWorker, tmp_path: Path
) -> None:
    worker(ACTORS, processes=2, env={"CALLBOARD_QUEUE_DEPTH": str(DEPTH)})
    gate = tmp_path / "gate"
    with client(environment, ["work"]) as broker, connect(environment["DATABASE_URL"]) as conn:
        jobs = [callboard.submit("work", ({**one, "gate": str(gate)} for one in mixed(JOINT))) for _ in range(3)]
        most = 0
        gate.touch()

        def all_done() -> bool:
            nonlocal most
            row = conn.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            ).fetchone()
            most = max(most, row[0] if row else 0)
            return all(job.status()["state"] in JOB_FINAL for job in jobs)

        assert wait_until(all_done, 300, pause=0.05)
        for job in jobs:
            assert_mixed(job.status(), JOINT)
        own = broker.runtime.process.pool.get_stats()["pool_size"]
        ends = "min(finished_at), percentile_disc(0.85) WITHIN GROUP (ORDER BY finished_at)"
        rows = conn.execute(f"SELECT {ends} FROM callboard.items GROUP BY job_id").fetchall()
    assert max(first for first, _ in rows) < min(late for _, late in rows), "one job had to wait for another"
    assert most <= 2 * 4 + 4, (most, own)
    assert drift(environment["DATABASE_URL"]) == []
