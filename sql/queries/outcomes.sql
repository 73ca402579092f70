-- name: report_running
-- Attempts that have run for a while get a row in `running`: with their step, their progress, and, if they take far longer
-- than their actor's mean, the place and the stack at which they hang.
-- Guard: the item, locked, still has that attempt and is not final; a row of another worker is not changed; a stack is only
-- added to an existing row: without one, the worker was declared dead, and the item runs elsewhere. An item that another
-- transaction has locked is skipped: the lock may last long, and the journal must not wait for it.
-- Caller: the journal; note_death. Rows: (job, item) of those that were not skipped.
-- Lock order: items by key without waiting for any, then their rows in `running`.
WITH held AS (
    SELECT e.*, i.attempt = e.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM {Running} AS e JOIN callboard.items AS i ON i.job_id = e.job AND i.item = e.item, {lock_wait}
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i SKIP LOCKED
), reported AS (
    INSERT INTO callboard.running AS r (job_id, item, attempt, worker, started_at, step, progress_done, progress_total,
                                        place, stack)
    SELECT h.job, h.item, h.attempt, %(worker)s, now() - make_interval(secs => h.age), h.step, h.progress_done, h.progress_total,
           h.place, h.stack
    FROM held AS h WHERE h.open AND (SELECT count(*) FROM held) >= 0  -- after all of `held` is locked
      AND (h.stack IS NULL OR EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = h.job AND r.item = h.item OFFSET 0))
    ORDER BY h.job, h.item
    ON CONFLICT (job_id, item) DO UPDATE
    SET step = excluded.step, attempt = excluded.attempt,
        progress_done = excluded.progress_done, progress_total = excluded.progress_total,
        place = excluded.place, stack = excluded.stack
    WHERE r.worker = excluded.worker
)
SELECT job, item FROM held

-- name: touch_jobs
-- The first items of these jobs started in this process, or items reported a step. `age`: of the oldest running attempt.
-- Transition: pending -> running. Guard: not stopped. Caller: the journal. Rows: (id) of the open jobs that were skipped,
-- because another transaction has locked them. Lock order: jobs by id without waiting for any.
WITH seen AS (
    SELECT * FROM unnest(%(job)s::bigint[], %(step)s::text[], %(age)s::float8[]) AS s (job_id, step, age)
), locked AS (
    SELECT j.id FROM callboard.jobs AS j JOIN seen AS s ON s.job_id = j.id
    WHERE j.finished_at IS NULL ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), touched AS (
    UPDATE callboard.jobs AS j
    SET state = CASE WHEN j.state = 'pending' THEN 'running' ELSE j.state END,
        started_at = least(j.started_at, now() - make_interval(secs => s.age)),
        step = coalesce(s.step, j.step),
        updated_at = now()
    FROM seen AS s JOIN locked AS l ON l.id = s.job_id
    WHERE j.id = s.job_id
)
SELECT j.id FROM seen AS s JOIN callboard.jobs AS j ON j.id = s.job_id
WHERE j.finished_at IS NULL AND j.id NOT IN (SELECT id FROM locked)

-- part: lock_wait
-- Makes this transaction wait for a lock for LOCK_WAIT_SECONDS at most: a transaction that locks a row of one job for longer
-- must not delay the other jobs. Join it below the locking clause.
(SELECT set_config('lock_timeout', concat(%(LOCK_WAIT_SECONDS)s::float8 * 1000, 'ms'), true)) AS lock_wait

-- name: locked_jobs
-- The jobs whose row, or one of these items, another transaction has locked. Caller: the journal, the publisher and
-- parking, for their waiting rows. Rows: (id). Lock order: items, jobs, without waiting for any.
WITH wanted AS (
    SELECT * FROM unnest(%(job)s::bigint[], %(item)s::int[]) AS w (job, item)
), free_items AS MATERIALIZED (
    SELECT i.job_id, i.item FROM callboard.items AS i JOIN wanted AS w ON i.job_id = w.job AND i.item = w.item
    FOR NO KEY UPDATE OF i SKIP LOCKED
), free_jobs AS MATERIALIZED (
    SELECT id FROM callboard.jobs WHERE id = ANY(%(job)s) FOR NO KEY UPDATE SKIP LOCKED
)
SELECT id FROM callboard.jobs WHERE id = ANY(%(job)s) AND id NOT IN (SELECT id FROM free_jobs)
UNION
SELECT i.job_id FROM wanted AS w JOIN callboard.items AS i ON i.job_id = w.job AND i.item = w.item
WHERE (i.job_id, i.item) NOT IN (SELECT job_id, item FROM free_items)

-- part: session
-- The session `a` as one line of text.
concat('process ', a.pid, ' of ', coalesce(nullif(a.application_name, ''), 'an application without a name'),
       ' on ', coalesce(a.client_addr::text, 'the database host'), ', ', a.state, ' for ',
       round(extract(epoch FROM clock_timestamp() - a.state_change)), ' s')

-- name: longest_lock
-- The session with the oldest transaction that holds locks of jobs, of items, or of a user's tables that refer to them, as
-- one line of text: probably the one that blocks. Caller: the journal's warning, retention.delete_rows,
-- requests.action_transaction.
SELECT {session}
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.relation IN (SELECT unnest(ARRAY[confrelid, conrelid]) FROM pg_constraint
                     WHERE confrelid IN ('callboard.jobs'::regclass, 'callboard.items'::regclass)
                     UNION ALL SELECT unnest(ARRAY['callboard.jobs'::regclass, 'callboard.items'::regclass]))
      AND l.mode <> 'AccessShareLock' AND l.pid <> pg_backend_pid() AND a.datname = current_database()
      AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
ORDER BY a.xact_start LIMIT 1
