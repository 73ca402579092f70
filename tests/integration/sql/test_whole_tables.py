"""Which statements read a whole table, by their plans on a database in which many jobs have left their rows.

How much some of them read is held by `test_plans` and `test_cost_of_looks`; here is every statement that there is.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from callboard.sql.pool import Conn, connect
from callboard.sql.statements import documented, statement
from tests.support.databases import database, with_database

#: Jobs that have ended, and items of each; a twentieth as many are open.
ENDED, ITEMS = 8_000, 5
STORED = f"""
SET session_replication_role = replica;  -- without triggers
INSERT INTO callboard.jobs
    (id, name, key, actor, queue, tenant, sealed, total, consumed, bulk_end, watermark, published, succeeded, failed,
     state, started_at, finished_at, control_at, created_at)
SELECT n, 'a job', 'key ' || n, 'actor ' || n % 50, 'queue ' || n % 20, 'tenant ' || n % 100, true, t, t, t, t, t, s, f,
       CASE WHEN ended THEN 'completed' ELSE 'running' END::callboard.job_state, at, CASE WHEN ended THEN at END, at, at
FROM generate_series(1, {ENDED + ENDED // 20}) AS n,
     LATERAL (SELECT n <= {ENDED} AS ended, now() - ({ENDED} - n) * interval '30 min' AS at) AS a,
     LATERAL (SELECT {ITEMS} AS t, CASE WHEN ended THEN {ITEMS - 1} ELSE 1 END AS s, ended::int AS f) AS c;
INSERT INTO callboard.items (job_id, item, args, item_key, state, started_at, finished_at)
SELECT id, i, '{{}}', 'key ' || i,
       CASE WHEN i = 0 AND final THEN 'failed' WHEN final THEN 'succeeded' ELSE 'waiting' END::callboard.item_state,
       started_at, CASE WHEN final THEN started_at END
FROM callboard.jobs, generate_series(0, {ITEMS - 1}) AS i, LATERAL (SELECT i < succeeded + failed AS final) AS f;
INSERT INTO callboard.results (job_id, item, value)
SELECT job_id, item, '1' FROM callboard.items WHERE state = 'succeeded';
INSERT INTO callboard.attempts
    (job_id, item, attempt, kind, retried, started_at, ended_at, error_type, pattern, message)
SELECT job_id, item, 1, 'failed', false, started_at, finished_at, 'E', 'm', 'm'
FROM callboard.items WHERE state = 'failed';
INSERT INTO callboard.errors
    (job_id, kind, error_type, place, pattern, count, failed, first_at, last_at, item, message)
SELECT job_id, kind, error_type, place, pattern, 1, 1, ended_at, ended_at, item, message FROM callboard.attempts;
INSERT INTO callboard.samples (job_id, final, failed, taken_at)
SELECT id, 0, 0, started_at FROM callboard.jobs;
INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, delivered_at, job)
SELECT id, finished_at, state, 'https://a/', 'a', now(), '{{}}' FROM callboard.jobs WHERE finished_at IS NOT NULL;
INSERT INTO callboard.actions (job_id, action, via) SELECT id, 'submit', 'http' FROM callboard.jobs;
INSERT INTO callboard.deleted_jobs (id, epoch, deleted_at) SELECT -id, 1, started_at FROM callboard.jobs;
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)
SELECT job_id, item, 2, now() + interval '1 hour', false FROM callboard.items WHERE state <> 'succeeded';
INSERT INTO callboard.workers (pid, threads, host, actors, queues, stopped_at)
SELECT n, 8, 'h', '{{work}}', '{{default}}', now() FROM generate_series(1, 5000) AS n;
SET session_replication_role = origin;
VACUUM ANALYZE
"""
#: Tables that grow with what has ever been done. `send_leases` does not, so that it may be read whole: of each process
#: and job into which it sends there is a row for about two seconds.
LARGE = {
    "jobs", "items", "results", "attempts", "errors", "samples", "callbacks", "actions", "deleted_jobs", "outbox",
    "workers",
}  # fmt: skip
#: Statements that read some of them on purpose.
WHOLE = {
    "job_controls": {"jobs"},  # only after a gap: then all that may have messages in RabbitMQ
    "follow_clock_set_back": {"outbox", "jobs", "samples"},  # only when the clock was set back
}
#: How statements begin that EXPLAIN does not plan.
COMMANDS = ("DO", "SET", "COPY", "CREATE")


@pytest.fixture(scope="module")
def full(postgres_url: str, template: str) -> Iterator[Conn]:
    with database(postgres_url, template) as name, connect(with_database(postgres_url, name)) as conn:
        for stored in STORED.split(";\n"):
            conn.execute(stored.encode())
        yield conn


def explained(text: str) -> str:
    """The text with the parameters of a prepared statement, whose plan is for any values of them."""
    names: dict[str, int] = {}

    def number(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        return f"${names.setdefault(found[1] or str(len(names)), len(names) + 1)}"

    return "EXPLAIN (GENERIC_PLAN, FORMAT JSON) " + re.sub(r"%%|%(?:\((\w+)\))?[sbt]", number, text)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from nodes(inner)


def whole(conn: Conn, name: str) -> set[str]:
    """The large tables that a statement reads from one end to the other."""
    row = conn.execute(explained(statement(name)).encode()).fetchone()
    assert row is not None
    return {
        node["Relation Name"] for node in nodes(row[0][0]["Plan"])
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
    }  # fmt: skip


def test_each_statement_finds_its_rows_by_an_index(full: Conn) -> None:
    if full.info.server_version < 160_000:
        pytest.skip("PostgreSQL before 16 plans no statement without its parameters")
    names = [name for name in documented() if not statement(name).lstrip().startswith(COMMANDS)]
    names.remove("insert_staged_items")  # of a table that only its transaction has
    found = {name: tables for name in names if (tables := whole(full, name))}
    assert found == WHOLE
