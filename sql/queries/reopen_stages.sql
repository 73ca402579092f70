-- reopen_stages: stages of which nothing was made are to be made after all. Transition: failed | cancelled -> pending.
-- Guard: over, and without any item. Caller: controls.retry, under the parent's lock. Lock order: jobs by id.
WITH unmade AS (
    SELECT id FROM callboard.jobs
    WHERE parent_id = %s AND stage > 0 AND NOT sealed AND consumed = 0 AND finished_at IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE callboard.jobs AS j
SET state = 'pending', reason = NULL, finished_at = NULL, maker = NULL, epoch = epoch + 1, told_at = clock_timestamp(),
    limits = CASE WHEN deadline < now() THEN limits - 'deadline' ELSE limits END,
    deadline = CASE WHEN deadline >= now() THEN deadline END, updated_at = now()
FROM unmade WHERE j.id = unmade.id
