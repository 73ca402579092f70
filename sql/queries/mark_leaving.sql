-- mark_leaving: finished jobs leave. From now on nobody sees them, their keys are free, and their rows may go.
-- Their stages, which are over with them, leave with them.
-- Guard: a job is over, as locked. Messages of what was cancelled may lie in RabbitMQ still: workers are told for longer
-- than the job's row is there. Caller: controls.delete; the sweep and `callboard purge`, after due_jobs.
-- Rows: (id), also of stages; none: see job_stand. Lock order: jobs by id.
WITH whole AS (
    SELECT id FROM callboard.jobs
    WHERE id = ANY (%s) AND finished_at IS NOT NULL AND leaving_at IS NULL AND parent_id IS NULL
    ORDER BY id FOR NO KEY UPDATE
), stages AS (
    -- By their ids, of which each is looked up: else all jobs may be compared with each.
    SELECT s.id FROM (
        SELECT s.id FROM whole CROSS JOIN LATERAL (
            SELECT id FROM callboard.jobs AS s WHERE s.parent_id = whole.id OFFSET 0
        ) AS s ORDER BY s.id
    ) AS one CROSS JOIN LATERAL (
        SELECT id FROM callboard.jobs AS s WHERE s.id = one.id AND s.finished_at IS NOT NULL OFFSET 0 FOR NO KEY UPDATE
    ) AS s
), left_ AS (
    UPDATE callboard.jobs AS j SET leaving_at = now(), key = NULL, standing_on = NULL
    WHERE j.id IN (SELECT id FROM whole UNION ALL SELECT id FROM stages)
    RETURNING j.id, j.epoch, j.published > j.succeeded + j.failed + j.skipped AS out
), told AS (
    INSERT INTO callboard.gone (id, epoch) SELECT id, epoch FROM left_ WHERE out
)
SELECT id FROM left_ ORDER BY id
