-- mark_leaving: a finished job leaves. From now on nobody sees it, its key is free, and its rows may go.
-- Guard: it is over, as locked. Messages of what was cancelled may lie in RabbitMQ still: workers are told for longer
-- than the job's row is there. Caller: controls.delete. Rows: (id); none: see job_stand.
WITH left_ AS (
    UPDATE callboard.jobs SET leaving_at = now(), key = NULL, standing_on = NULL
    WHERE id = %s AND finished_at IS NOT NULL AND leaving_at IS NULL
    RETURNING id, epoch, published > succeeded + failed + skipped AS out
), told AS (
    INSERT INTO callboard.gone (id, epoch) SELECT id, epoch FROM left_ WHERE out
)
SELECT id FROM left_
