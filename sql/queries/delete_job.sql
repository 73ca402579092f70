-- delete_job: the last rows of a leaving job go, its own with them. Every table whose rows have a job_id and no item of
-- their own is here; a test compares. Guard: lock_leaving. Caller: leaving.clear.
WITH e AS (
    DELETE FROM callboard.errors WHERE job_id = %(job)s
), s AS (
    DELETE FROM callboard.samples WHERE job_id = %(job)s
), a AS (
    DELETE FROM callboard.actions WHERE job_id = %(job)s
), c AS (
    DELETE FROM callboard.callbacks WHERE job_id = %(job)s
)
DELETE FROM callboard.jobs WHERE id = %(job)s AND leaving_at IS NOT NULL
