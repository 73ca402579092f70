-- mark_due: finished jobs whose time is over leave, as in mark_leaving: some of them, the first to have ended first.
-- `keep`: seconds for which jobs are kept that don't say so themselves; NULL: for ever.
-- Guard: the job, locked, is over and has been for so long, and whom it calls has been called.
-- Caller: the sweep, `callboard purge`. Rows: (id).
WITH due AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.finished_at IS NOT NULL AND j.leaving_at IS NULL AND j.parent_id IS NULL
      AND (j.keep IS NULL AND j.finished_at < now() - make_interval(secs => %(keep)s::float8)
           OR j.keep IS NOT NULL AND extract(epoch FROM now() - j.finished_at) > j.keep)
      AND NOT EXISTS (SELECT FROM callboard.callbacks AS c
                      WHERE c.job_id = j.id AND c.delivered_at IS NULL AND c.gave_up_at IS NULL)
    ORDER BY j.finished_at LIMIT %(limit)s FOR NO KEY UPDATE OF j SKIP LOCKED
), left_ AS (
    UPDATE callboard.jobs AS j SET leaving_at = now(), key = NULL, standing_on = NULL
    WHERE j.id IN (SELECT id FROM due UNION ALL SELECT s.id FROM due JOIN callboard.jobs AS s ON s.parent_id = due.id)
      AND j.finished_at IS NOT NULL
    RETURNING j.id, j.epoch, j.published > j.succeeded + j.failed + j.skipped AS out
), told AS (
    INSERT INTO callboard.gone (id, epoch) SELECT id, epoch FROM left_ WHERE out
)
SELECT id FROM left_ ORDER BY id
