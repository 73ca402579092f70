-- pause_job: nothing of this job starts until it is resumed. Transition: pending | running -> paused.
-- Guard: not stopping. Caller: controls.pause. Rows: (id); none: see job_stand.
UPDATE callboard.jobs SET state = 'paused', epoch = epoch + 1, told_at = clock_timestamp(), updated_at = now()
WHERE id = %s AND state IN ('pending', 'running') AND stopping IS NULL
RETURNING id
