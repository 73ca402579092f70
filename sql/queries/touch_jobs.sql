-- touch_jobs: items of these jobs were started here for the first time, or said what they are doing.
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
