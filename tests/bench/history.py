"""Jobs as they lie in a database after years, made in SQL: finished ones with their items, and open ones."""

from callboard.sql.pool import Conn

#: Customers, and tenants of open jobs. Of finished jobs a third has each of three tenants, actors and states.
CUSTOMERS, TENANTS = 1_000, 100
#: Items of one statement.
BATCH_ITEMS = 1_000_000

#: Finished jobs over a year, which ended `years` ago, the newest last; of each job some items failed, by ten errors.
JOBS = """
INSERT INTO callboard.jobs (
    name, tenant, actor, queue, metadata, sealed, state, total, bulk_end, watermark, published, succeeded, failed,
    created_at, started_at, finished_at, updated_at)
SELECT 'job ' || n, 'tenant ' || n %% 3, 'actor ' || n / 3 %% 3, 'default',
       jsonb_build_object('customer', n %% %(customers)s), true,
       ('{failed,cancelled,completed}'::callboard.job_state[])[1 + n / 9 %% 3],
       %(each)s, %(each)s, %(each)s, %(each)s, %(each)s - %(failed)s, %(failed)s,
       at.at, at.at + interval '1 second', at.at + interval '1 minute', at.at + interval '1 minute'
FROM generate_series(1, %(jobs)s) AS n
CROSS JOIN LATERAL (
    SELECT now() - interval '2 minutes' - interval '365 days' * (%(years)s + 1 - n::float8 / %(jobs)s) AS at
) AS at
ORDER BY n RETURNING id
"""
ITEMS = """
INSERT INTO callboard.items (job_id, item, args, state, worker, started_at, finished_at)
SELECT j.id, n, convert_to('{"args":[' || n || '],"kwargs":{}}', 'UTF8'),
       CASE WHEN n < j.failed THEN 'failed' ELSE 'succeeded' END::callboard.item_state, 1,
       j.started_at, j.finished_at
FROM callboard.jobs AS j CROSS JOIN generate_series(0, j.total - 1) AS n WHERE j.id = ANY (%s)
"""
#: Results of every tenth item, attempts and errors of those that failed, and a point of the chart every six seconds.
REST = """
WITH job AS MATERIALIZED (
    SELECT * FROM callboard.jobs WHERE id = ANY (%s)
), result AS (
    INSERT INTO callboard.results (job_id, item, value)
    SELECT j.id, n, '{"score": ' || n || '}' FROM job AS j CROSS JOIN generate_series(j.failed, j.total - 1, 10) AS n
), attempt AS (
    INSERT INTO callboard.attempts
        (job_id, ended_at, item, attempt, kind, retried, error_type, place, pattern, message, traceback)
    SELECT j.id, j.finished_at, n, 1, 'failed', false, 'shop.Error' || n %% 10, 'shop.py:1', 'no price', 'no price',
           repeat('Traceback ', 20)
    FROM job AS j CROSS JOIN generate_series(0, j.failed - 1) AS n
), error AS (
    INSERT INTO callboard.errors
    SELECT j.id, count(*), count(*), j.finished_at, j.finished_at, min(n), 'failed', 'shop.Error' || n %% 10,
           'shop.py:1', 'no price', 'no price'
    FROM job AS j CROSS JOIN generate_series(0, j.failed - 1) AS n GROUP BY j.id, j.finished_at, n %% 10
)
INSERT INTO callboard.samples (job_id, taken_at, final, failed)
SELECT j.id, j.started_at + make_interval(secs => 6 * n), j.total * n / 10, 0
FROM job AS j CROSS JOIN generate_series(1, 9) AS n
"""
#: What else ends with a statement that ends a job.
TOTALS = """
INSERT INTO callboard.totals (jobs, succeeded, failed, skipped, retries, crashes, state, actor, queue)
SELECT count(*), sum(succeeded), sum(failed), 0, 0, 0, state, actor, queue FROM callboard.jobs WHERE id = ANY (%s)
GROUP BY state, actor, queue
"""
#: Open jobs, of each of which half of the items are published, and of these a half ended.
OPEN_JOBS = """
INSERT INTO callboard.jobs (
    name, tenant, actor, queue, metadata, sealed, state, total, bulk_end, watermark, published, succeeded, started_at)
SELECT 'open job ' || n, 'tenant ' || n %% %(tenants)s, 'actor ' || n %% 3, 'default',
       jsonb_build_object('customer', n %% %(customers)s), true, 'running', %(each)s, %(each)s, %(each)s / 2,
       %(each)s / 2, %(each)s / 4, now()
FROM generate_series(1, %(jobs)s) AS n ORDER BY n RETURNING id
"""
OPEN_ITEMS = """
INSERT INTO callboard.items (job_id, item, args, state, worker, started_at, finished_at)
SELECT j.id, n, convert_to('{"args":[' || n || '],"kwargs":{}}', 'UTF8'),
       CASE WHEN n < j.succeeded THEN 'succeeded' ELSE 'waiting' END::callboard.item_state, 1,
       j.started_at, CASE WHEN n < j.succeeded THEN now() END
FROM callboard.jobs AS j CROSS JOIN generate_series(0, j.total - 1) AS n WHERE j.id = ANY (%s)
"""
#: Worker processes that ended, as deploys leave them.
WORKERS = """
INSERT INTO callboard.workers (pid, threads, host, actors, queues, stopped_at, beat_at)
SELECT 1, 8, 'backstage', '{work}', '{default}', now(), now() FROM generate_series(1, %s)
"""


def add_finished(conn: Conn, jobs: int, each: int, *, workers: int = 0, years: int = 0) -> list[int]:
    """Add finished jobs of `each` items, a hundredth of which failed (one at least), and workers that ended. The year
    of these jobs ended `years` ago: ids follow the order in which jobs are created.
    """
    numbers = {"jobs": jobs, "each": each, "failed": max(each // 100, 1), "customers": CUSTOMERS, "years": years}
    made = [row[0] for row in conn.execute(JOBS, numbers)]
    for batch in _batches(made, each):
        conn.execute(ITEMS, (batch,))
        conn.execute(REST, (batch,))
    conn.execute(TOTALS, (made,))
    conn.execute(WORKERS, (workers,))
    return made


def add_open(conn: Conn, jobs: int, each: int) -> list[int]:
    """Add running jobs of `each` items, of which half are yet to be published, and a quarter are queued."""
    numbers = {"jobs": jobs, "each": each, "tenants": TENANTS, "customers": CUSTOMERS}
    made = [row[0] for row in conn.execute(OPEN_JOBS, numbers)]
    for batch in _batches(made, each):
        conn.execute(OPEN_ITEMS, (batch,))
    return made


def _batches(jobs: list[int], each: int) -> list[list[int]]:
    size = max(BATCH_ITEMS // each, 1)
    return [jobs[n : n + size] for n in range(0, len(jobs), size)]
