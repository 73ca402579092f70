-- close_jobs: sealed jobs with nothing left to do that nobody closed. It mends what should never happen.
-- Transition: pending | running | paused -> completed, and its callbacks are queued. Caller: the sweep. Rows: (id).
WITH done AS (
    SELECT id FROM callboard.jobs
    WHERE finished_at IS NULL AND sealed AND stopping IS NULL AND succeeded + failed + skipped + cancelled = total
    ORDER BY id FOR NO KEY UPDATE
), ended AS (
    UPDATE callboard.jobs AS j SET state = 'completed', finished_at = now(), updated_at = now()
    FROM done WHERE j.id = done.id RETURNING j.*
), called AS (
    INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, job)
    SELECT e.id, e.finished_at, e.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue', to_jsonb(e) - 'callbacks'
    FROM ended AS e CROSS JOIN LATERAL jsonb_array_elements(e.callbacks -> e.state::text) AS t
)
SELECT id FROM ended
