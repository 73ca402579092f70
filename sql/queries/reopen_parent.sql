-- reopen_parent: items of its stages were given another attempt, or stages that were never made are to be.
-- Transition: completed | failed | cancelled -> pending | running. Guard: over. A deadline that passed is forgotten.
-- Caller: controls.retry, under its lock.
UPDATE callboard.jobs
SET state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END::callboard.job_state,
    limits = CASE WHEN (limits ->> 'deadline')::timestamptz < now() THEN limits - 'deadline' ELSE limits END,
    reason = NULL, sealed = false, finished_at = NULL, updated_at = now()
WHERE id = %s AND finished_at IS NOT NULL
