-- name: job_status
-- The status of a job, before an action. Caller: requests.job_status.
-- Rows: one, (state, being stopped, failed, skipped, cancelled, total, has stages, its parent); none: no such job, a deleted job,
-- or not of this tenant.
SELECT state::text, stopping IS NOT NULL, failed, skipped,
       CASE WHEN finished_at IS NULL THEN cancelled ELSE total - succeeded - failed - skipped END,
       total, stages IS NOT NULL, parent_id
FROM callboard.jobs WHERE id = %(job)s AND deleted_at IS NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)

-- name: database_time
-- The time from which spans of limits count: clocks of other machines may be wrong. Caller: requests.at_database_time.
SELECT now()

-- name: note_action
-- Record an action on a job, in the transaction of the action. Caller: requests.note_action.
INSERT INTO callboard.actions (job_id, action, who, via, address, detail)
VALUES (%(job)s, %(action)s, %(who)s, %(via)s, %(address)s, %(detail)s::jsonb)
