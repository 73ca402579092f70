-- name: report_running
-- Items in hand for a while, what they say they are doing, how far they are, and where those stand that take far longer
-- than their actor usually does.
-- Guard: the item, locked, still carries that attempt and isn't final; a row of another worker stays as it is; one that
-- hangs has its row: it is not taken back after its worker was taken for dead, but runs elsewhere.
-- Caller: the journal. Lock order: items by key, then their rows in `running`.
WITH held AS (
    SELECT e.*, i.attempt = e.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM {Running} AS e JOIN callboard.items AS i ON i.job_id = e.job AND i.item = e.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
)
INSERT INTO callboard.running AS r (job_id, item, attempt, worker, started_at, step, progress_done, progress_total,
                                    place, stack)
SELECT h.job, h.item, h.attempt, %(worker)s, now() - make_interval(secs => h.age), h.step, h.progress_done, h.progress_total,
       h.place, h.stack
FROM held AS h WHERE h.open AND (SELECT count(*) FROM held) >= 0  -- these first
  AND (h.stack IS NULL OR EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = h.job AND r.item = h.item OFFSET 0))
ORDER BY h.job, h.item
ON CONFLICT (job_id, item) DO UPDATE
SET step = excluded.step, attempt = excluded.attempt,
    progress_done = excluded.progress_done, progress_total = excluded.progress_total,
    place = excluded.place, stack = excluded.stack
WHERE r.worker = excluded.worker

-- name: touch_jobs
-- Items of these jobs were started here for the first time, or said what they are doing.
-- Transition: pending -> running. Guard: not stopped. Caller: the journal. Lock order: jobs by id.
WITH seen AS (
    SELECT * FROM unnest(%(job)s::bigint[], %(step)s::text[]) AS s (job_id, step)
), locked AS (
    SELECT j.id FROM callboard.jobs AS j JOIN seen AS s ON s.job_id = j.id
    WHERE j.finished_at IS NULL ORDER BY j.id FOR NO KEY UPDATE OF j
)
UPDATE callboard.jobs AS j
SET state = CASE WHEN j.state = 'pending' THEN 'running' ELSE j.state END,
    started_at = coalesce(j.started_at, now()),
    step = coalesce(s.step, j.step),
    updated_at = now()
FROM seen AS s JOIN locked AS l ON l.id = s.job_id
WHERE j.id = s.job_id

-- name: unlocked_jobs
-- The jobs of which no other transaction has locked the row, or one of these items. Caller: the journal, for outcomes that
-- wait. Rows: (id).
WITH wanted AS (
    SELECT * FROM unnest(%(job)s::bigint[], %(item)s::int[]) AS w (job, item)
), free_items AS (
    SELECT i.job_id, i.item FROM callboard.items AS i JOIN wanted AS w ON i.job_id = w.job AND i.item = w.item
    FOR NO KEY UPDATE OF i SKIP LOCKED
)
SELECT j.id FROM callboard.jobs AS j
WHERE j.id = ANY(%(job)s) AND ARRAY(SELECT w.item FROM wanted AS w WHERE w.job = j.id ORDER BY 1)
                            = ARRAY(SELECT f.item FROM free_items AS f WHERE f.job_id = j.id ORDER BY 1)
FOR NO KEY UPDATE SKIP LOCKED

-- part: session
-- The session `a` as one line of text.
concat('process ', a.pid, ' of ', coalesce(nullif(a.application_name, ''), 'an application without a name'),
       ' on ', coalesce(a.client_addr::text, 'the database host'), ', ', a.state, ' for ',
       round(extract(epoch FROM clock_timestamp() - a.state_change)), ' s')

-- name: longest_lock
-- The session with the oldest transaction that has locks of jobs, of items, or of tables of the user's that refer to them,
-- as one line of text: perhaps the one that is waited for. Caller: the journal's warning, retention.delete_rows.
SELECT {session}
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.relation IN (SELECT unnest(ARRAY[confrelid, conrelid]) FROM pg_constraint
                     WHERE confrelid IN ('callboard.jobs'::regclass, 'callboard.items'::regclass)
                     UNION ALL SELECT unnest(ARRAY['callboard.jobs'::regclass, 'callboard.items'::regclass]))
      AND l.mode <> 'AccessShareLock' AND l.pid <> pg_backend_pid() AND a.datname = current_database()
      AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
ORDER BY a.xact_start LIMIT 1
