-- resume_job: it goes on. Transition: paused -> pending | running. Guard: not stopping.
-- Caller: controls.resume. Rows: (id); none: see job_stand.
UPDATE callboard.jobs
SET state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END::callboard.job_state,
    epoch = epoch + 1, told_at = clock_timestamp(), updated_at = now()
WHERE id = %s AND state = 'paused' AND stopping IS NULL
RETURNING id
