-- stop_late: jobs whose deadline passed. Transition: open -> stopping, to be cancelled. Guard: not stopping.
-- Caller: the sweep. Rows: (id). Lock order: jobs by id.
WITH late AS (
    SELECT id FROM callboard.jobs
    WHERE deadline < now() AND finished_at IS NULL AND stopping IS NULL ORDER BY id FOR NO KEY UPDATE
)
UPDATE callboard.jobs AS j
SET stopping = 'cancelled', epoch = epoch + 1, told_at = clock_timestamp(), standing_on = NULL, updated_at = now(),
    reason = 'its deadline passed with ' || total - succeeded - failed - skipped - cancelled || ' items to go'
             || CASE WHEN stage > 0 AND NOT sealed THEN ', and others not made yet' ELSE '' END
FROM late WHERE j.id = late.id
RETURNING j.id
