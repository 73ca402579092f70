-- name: pause_job
-- Nothing of this job starts until it is resumed. Transition: pending | running -> paused.
-- Guard: not stopping. Caller: controls.pause. Rows: (id); none: see job_stand.
UPDATE callboard.jobs SET state = 'paused', epoch = epoch + 1, told_at = clock_timestamp(), updated_at = now()
WHERE id = %s AND state IN ('pending', 'running') AND stopping IS NULL
RETURNING id

-- name: resume_job
-- It goes on. Transition: paused -> pending | running. Guard: not stopping.
-- Caller: controls.resume. Rows: (id); none: see job_stand.
UPDATE callboard.jobs
SET state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END::callboard.job_state,
    epoch = epoch + 1, told_at = clock_timestamp(), updated_at = now()
WHERE id = %s AND state = 'paused' AND stopping IS NULL
RETURNING id

-- name: limit_job
-- What a job may do at most, from now on. Caller: controls.limit, which has the row locked.
UPDATE callboard.jobs SET ({limits}) = ROW ({limit_values}), updated_at = now() WHERE id = %(job)s

-- part: limits
-- The columns of what a job may do at most.
limits, fail_count, fail_share, fail_sample, concurrency, rate, priority, deadline, not_before, keep, lane_by, lane_width

-- part: limit_values
-- Their values, in this order.
%(limits)s::jsonb, %(fail_count)s::bigint, %(fail_share)s::float8, %(fail_sample)s::bigint, %(concurrency)s::int,
%(rate)s::float8, %(priority)s::int, %(deadline)s::timestamptz, %(not_before)s::timestamptz, %(keep)s::float8,
%(lane_by)s::text, %(lane_width)s::int

-- name: job_limits
-- What a job may do at most, locked while it is changed. Caller: controls.limit. Rows: (limits); none: it left meanwhile.
SELECT limits FROM callboard.jobs WHERE id = %s AND leaving_at IS NULL FOR NO KEY UPDATE

-- name: job_stand
-- How a job stands, before it is told something. Caller: controls.
-- Rows: one, (state, being stopped, failed, skipped, cancelled, has stages, whose stage it is); none: no such job (one that
-- is leaving is none), or not of this tenant.
SELECT state::text, stopping IS NOT NULL, failed, skipped,
       CASE WHEN finished_at IS NULL THEN cancelled ELSE total - succeeded - failed - skipped END,
       stages IS NOT NULL, parent_id
FROM callboard.jobs WHERE id = %(job)s AND leaving_at IS NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
