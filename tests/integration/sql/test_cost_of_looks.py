"""What a process reads that has nothing to do, and the sweep in each round: it follows the work, not what is stored."""

from collections.abc import Callable, Iterator

import pytest

from callboard.middleware.sweep.lost_messages import LostMessageSearch
from callboard.middleware.sweep.sweep import PAGE_JOBS
from callboard.sql.pool import Conn, connect
from callboard.sql.writes import callbacks, claims, jobs, publishing, retention, stages, submission, sweep, workers
from tests.support.databases import database, with_database
from tests.support.jobs import claim_outbox, make_worker
from tests.support.transports import StubTransport

#: A job of 60 items, and many of them: 55 items have ended, five are in flight, and 20 of other jobs wait for a retry.
OPEN_JOBS, ITEMS, RETRYING = 3_000, 60, 20
#: Messages that are due of a paused job, and of one at its limit; and that wait for an actor of a worker that is gone,
#: and for one that no worker announced.
DUE = 50_000
STORED = f"""
SET session_replication_role = replica;  -- without triggers
INSERT INTO callboard.actors (name, queue) VALUES ('work', 'default'), ('gone', 'default');
INSERT INTO callboard.workers (pid, threads, host, actors, queues, beat_at, held_jobs, held_items)
SELECT n, 8, 'h', '{{work}}', '{{default}}', now() + interval '1 hour',
       array_fill(1::bigint, ARRAY[100]), array_fill(n, ARRAY[100])
FROM generate_series(1, 200) AS n;
INSERT INTO callboard.workers (pid, threads, host, actors, queues, stopped_at)
SELECT n, 8, 'h', '{{work}}', '{{default}}', now() FROM generate_series(1, 5000) AS n;
INSERT INTO callboard.jobs
    (id, name, actor, queue, tenant, sealed, total, consumed, bulk_end, watermark, published, succeeded, retrying,
     state, started_at, control_at)
SELECT n, 'open', 'work', 'default', 't' || n % 1000, true, t, t, t, t, t, 55, {RETRYING},
       'running', now(), now() - interval '1 day'
FROM generate_series(1, {OPEN_JOBS}) AS n, (VALUES ({ITEMS + RETRYING})) AS v (t);
INSERT INTO callboard.items (job_id, item, args, state, finished_at)
SELECT j, i, '{{}}', CASE WHEN i < 55 THEN 'succeeded' WHEN i < {ITEMS} THEN 'waiting' ELSE 'retrying' END::item,
       CASE WHEN i < 55 THEN now() END
FROM generate_series(1, {OPEN_JOBS}) AS j, generate_series(0, {ITEMS + RETRYING - 1}) AS i;
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)
SELECT j, i, 2, now() + interval '1 hour', false
FROM generate_series(1, {OPEN_JOBS}) AS j, generate_series({ITEMS}, {ITEMS + RETRYING - 1}) AS i;
INSERT INTO callboard.jobs
    (id, name, actor, queue, sealed, total, consumed, bulk_end, watermark, published, retrying,
     state, started_at, concurrency)
SELECT n, 'due', 'work', 'default', true, t, t, t, t, t, t - 5 * m,
       CASE m WHEN 0 THEN 'paused' ELSE 'running' END::callboard.job_state, now(), nullif(5 * m, 0)
FROM (VALUES (10006, 0), (10007, 1)) AS v (n, m), (VALUES ({DUE})) AS u (t);
INSERT INTO callboard.items (job_id, item, args, state)
SELECT j, i, '{{}}', CASE WHEN j = 10007 AND i < 5 THEN 'waiting' ELSE 'retrying' END::item
FROM generate_series(10006, 10007) AS j, generate_series(0, {DUE - 1}) AS i;
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first)
SELECT j, i, 2, now() - interval '1 hour', false
FROM generate_series(10006, 10007) AS j, generate_series(5, {DUE - 1}) AS i;
INSERT INTO callboard.jobs (id, name, stages, state, started_at)
SELECT 100000 + 10 * n, 'of stages', 3, 'running', now() FROM generate_series(1, {OPEN_JOBS}) AS n;
INSERT INTO callboard.jobs
    (id, name, parent_id, stage, on_failure, actor, queue, sealed, total, consumed, state, started_at)
SELECT p.id + 1 + s, 'a stage', p.id, s, 'stop', 'work', 'default', s = 0, t, t,
       CASE s WHEN 0 THEN 'running' ELSE 'pending' END::callboard.job_state, CASE s WHEN 0 THEN now() END
FROM callboard.jobs AS p, (VALUES (0, 1), (1, 0), (2, 0)) AS v (s, t) WHERE p.stages = 3;
INSERT INTO callboard.jobs
    (id, name, actor, queue, sealed, total, consumed, published, state, started_at)
SELECT n, 'postponed', 'work', 'default', true, t, t, t, 'running', now()
FROM generate_series(10008, 10009) AS n, (VALUES ({DUE})) AS u (t);
INSERT INTO callboard.items (job_id, item, args, actor, sent_at)
SELECT j, i, '{{}}', CASE j WHEN 10008 THEN 'gone' ELSE 'misspelt' END, now()
FROM generate_series(10008, 10009) AS j, generate_series(0, {DUE - 1}) AS i;
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, resend, awaits)
SELECT job_id, item, 1, '9999-01-01Z', false, true, actor FROM callboard.items WHERE job_id IN (10008, 10009);
INSERT INTO callboard.turns (job_id, queue, target, due_at, tenant, priority, limited, held, over, served_at)
SELECT o.job_id, '', 'default', min(o.due_at), j.tenant, 0, j.concurrency IS NOT NULL, j.state = 'paused', false, now()
FROM callboard.outbox AS o JOIN callboard.jobs AS j ON j.id = o.job_id GROUP BY o.job_id, j.id;
INSERT INTO callboard.samples (job_id, final, failed, taken_at)
SELECT n, 55, 0, now() - k * interval '1 min' FROM generate_series(1, {OPEN_JOBS}) AS n, generate_series(1, 3) AS k;
INSERT INTO callboard.deleted_jobs (id, epoch, deleted_at)
SELECT n, 1, now() - interval '1 day' FROM generate_series(1000000, 1100000) AS n;
INSERT INTO callboard.jobs (id, name, sealed, state, started_at, finished_at, keep, control_at)
SELECT n, 'ended', true, 'completed', now(), now() - interval '1 day', CASE WHEN n % 2 = 0 THEN 1e8 END,
       now() - interval '1 day'
FROM generate_series(20001, 40000) AS n;
INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, delivered_at, job)
SELECT n, now(), 'completed', 'https://a/', 'a', CASE WHEN n % 2 = 0 THEN now() END, '{{}}'
FROM generate_series(20001, 40000) AS n;
SET session_replication_role = origin;
VACUUM ANALYZE
""".replace("::item", "::callboard.item_state")
READ = (
    "SELECT sum(pg_stat_get_xact_blocks_fetched(oid))::bigint FROM pg_class"
    " WHERE relnamespace = 'callboard'::regnamespace"
)
Look = Callable[[Conn], object]


@pytest.fixture(scope="module")
def conn(postgres_url: str, template: str) -> Iterator[Conn]:
    with database(postgres_url, template) as name, connect(with_database(postgres_url, name)) as made:
        for statement in STORED.split(";\n"):
            made.execute(statement.encode())
        made.prepare_threshold = None
        yield made


def _page(step: Callable[..., object]) -> Look:
    return lambda c: step(c, page=sweep.page_of_open_jobs(c, 0, PAGE_JOBS))


def _search(conn: Conn) -> None:
    LostMessageSearch(StubTransport).run(conn, "the one that sweeps")


def _wake_one(conn: Conn) -> None:
    """One message whose actor a worker has waits beside many whose actors none has."""
    make_worker(conn, "back")
    conn.execute("UPDATE callboard.outbox SET awaits = 'back' WHERE job_id = 10009 AND item = %s", (DUE - 1,))
    claims.make_postponed_due(conn)
    due = "SELECT due_at <= now() FROM callboard.outbox WHERE job_id = 10009 AND item = %s"
    assert conn.execute(due, (DUE - 1,)).fetchone() == (True,)


#: Blocks that each may read; a page of jobs, and a search of so many, reads some of each.
FEW, MANY = 500, 16 * PAGE_JOBS
LOOKS: dict[str, tuple[Look, int]] = {
    "due_queues": (publishing.due_queues, FEW),
    "claim_job": (publishing.claim_job, FEW),
    "due_jobs": (publishing.due_jobs, FEW),
    "claim_outbox": (lambda c: claim_outbox(c, 500), FEW),
    "beat": (lambda c: workers.beat(c, 1, []), FEW),
    "job_controls": (lambda c: workers.job_controls(c, 20.0), FEW),
    "update_parents": (stages.update_parents, FEW),
    "claim_stage": (lambda c: stages.claim_stage(c, 1, ["work"], []), FEW),
    "messages": (lambda c: callbacks.claim_callbacks(c, webhooks=False, limit=50), FEW),
    "webhooks": (lambda c: callbacks.claim_callbacks(c, webhooks=True, limit=1, full=["a"]), FEW),
    "one webhook": (lambda c: callbacks.claim_callbacks(c, webhooks=True, limit=1), FEW),
    "dead_workers": (workers.dead_workers, FEW),
    "fail_abandoned_submissions": (submission.fail_abandoned_submissions, FEW),
    "standing_jobs_to_seal": (sweep.standing_jobs_to_seal, FEW),
    "stop_overdue_jobs": (jobs.stop_overdue_jobs, FEW),
    "close_stopped": (jobs.close_stopped, FEW),
    "drop_messages_of_ended_jobs": (sweep.drop_messages_of_ended_jobs, FEW),
    "make_postponed_due": (claims.make_postponed_due, FEW),
    "one is due": (_wake_one, 2 * FEW),
    "mark_expired": (lambda c: retention.mark_expired(c, 1e8), FEW),
    "delete_old_rows": (lambda c: retention.delete_old_rows(c, 1e8), FEW),
    "deleted_jobs": (retention.deleted_jobs, FEW),
    "sample_jobs": (_page(sweep.sample_jobs), MANY),
    "close_jobs": (_page(jobs.close_jobs), MANY),
    "stop_jobs_without_actor": (_page(jobs.stop_jobs_without_actor), MANY),
    "the search for lost messages": (_search, 8 * MANY),
}


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", LOOKS)
def test_a_look_reads_little(name: str, plan: str, conn: Conn) -> None:
    look, most = LOOKS[name]
    conn.prepare_threshold = 0
    with conn.transaction(force_rollback=True):
        conn.execute(f"SET LOCAL plan_cache_mode = {plan}")
        conn.execute("SET LOCAL statement_timeout = '20s'")
        before = conn.execute(READ).fetchone() or (0,)
        look(conn)
        after = conn.execute(READ).fetchone() or (0,)
    assert after[0] - before[0] <= most
