-- due_jobs: finished jobs whose time is over, some of them, the first to have ended first; locked until they leave.
-- `keep`: seconds for which jobs are kept that don't say so themselves; NULL: for ever.
-- Guard: the job, as locked, is over and has been for so long, and whom it calls has been called.
-- Caller: the sweep, `callboard purge`. Rows: (id). Lock order: jobs, waiting for none.
-- One of which somebody has a stage in hand is looked at again.
WITH due AS (
    SELECT j.id, j.stages FROM callboard.jobs AS j
    WHERE j.finished_at IS NOT NULL AND j.leaving_at IS NULL AND j.parent_id IS NULL
      AND (j.keep IS NULL AND j.finished_at < now() - make_interval(secs => %(keep)s::float8)
           OR j.keep IS NOT NULL AND extract(epoch FROM now() - j.finished_at) > j.keep)
      AND j.id NOT IN (SELECT job_id FROM callboard.callbacks WHERE delivered_at IS NULL AND gave_up_at IS NULL)
    ORDER BY j.finished_at LIMIT %(limit)s FOR NO KEY UPDATE OF j SKIP LOCKED
), stages AS (
    -- Looked up for each: else all jobs may be compared with each.
    SELECT s.parent_id FROM due CROSS JOIN LATERAL (
        SELECT parent_id FROM callboard.jobs AS s
        WHERE s.parent_id = due.id AND s.finished_at IS NOT NULL OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED
    ) AS s
)
-- Hashed, as above, however wrong the planner's guess is: counted for each, all stages were read for each.
SELECT id FROM due WHERE stages IS NULL OR (id, stages) IN (SELECT parent_id, count(*) FROM stages GROUP BY parent_id)
