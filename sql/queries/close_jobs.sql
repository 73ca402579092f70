-- close_jobs: sealed jobs with nothing left to do that nobody closed. It mends what should never happen.
-- Transition: pending | running | paused -> completed. Caller: the sweep. Rows: (id).
WITH done AS (
    SELECT id FROM callboard.jobs
    WHERE finished_at IS NULL AND sealed AND stopping IS NULL AND succeeded + failed + skipped + cancelled = total
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE callboard.jobs AS j SET state = 'completed', finished_at = now(), updated_at = now()
FROM done WHERE j.id = done.id RETURNING j.id
