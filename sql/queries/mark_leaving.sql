-- mark_leaving: a finished job leaves. From now on nobody sees it, its key is free, and its rows may go.
-- Its stages, which are over with it, leave with it.
-- Guard: it is over, as locked. Messages of what was cancelled may lie in RabbitMQ still: workers are told for longer
-- than the job's row is there. Caller: controls.delete. Rows: (id); none: see job_stand.
WITH whole AS (
    SELECT id FROM callboard.jobs
    WHERE id = %s AND finished_at IS NOT NULL AND leaving_at IS NULL AND parent_id IS NULL FOR NO KEY UPDATE
), left_ AS (
    UPDATE callboard.jobs AS j SET leaving_at = now(), key = NULL, standing_on = NULL
    WHERE j.id IN (SELECT id FROM whole UNION ALL SELECT s.id FROM whole JOIN callboard.jobs AS s ON s.parent_id = whole.id)
      AND j.finished_at IS NOT NULL
    RETURNING j.id, j.epoch, j.published > j.succeeded + j.failed + j.skipped AS out
), told AS (
    INSERT INTO callboard.gone (id, epoch) SELECT id, epoch FROM left_ WHERE out
)
SELECT id FROM left_
