-- stop_job: nothing of this job starts any more. Transition: open -> stopping; close_stopped makes it final when the last
-- item in hand has ended. Guard: open and not stopping. A standing job gives its day to a new one.
-- Caller: controls.cancel. Rows: (id); none: see job_stand.
UPDATE callboard.jobs
SET stopping = %(state)s::callboard.job_state, reason = %(reason)s, epoch = epoch + 1, told_at = clock_timestamp(),
    standing_on = NULL, updated_at = now()
WHERE id = %(job)s AND finished_at IS NULL AND stopping IS NULL
RETURNING id
