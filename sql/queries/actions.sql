-- name: limit_job
-- Change the limits of a job. Caller: actions.limit, which has the row locked.
UPDATE callboard.jobs SET ({limits}) = ROW ({limit_values}), updated_at = now() WHERE id = %(job)s

-- name: keep_hold
-- A job that an item has held back as a whole stays so until the item's time. Caller: actions.limit, which has the row
-- locked.
UPDATE callboard.jobs SET not_before = greatest(not_before, (holds -> '*' ->> 'until')::timestamptz)
WHERE id = %(job)s AND (holds -> '*' ->> 'until')::timestamptz > now()

-- part: limits
-- The columns of a job's limits.
limits, fail_count, fail_share, fail_sample, concurrency, rate, priority, deadline, not_before, keep, lane_by, lane_width, lanes

-- part: limit_values
-- Their values, in this order.
%(limits)s::jsonb, %(fail_count)s::bigint, %(fail_share)s::float8, %(fail_sample)s::bigint, %(concurrency)s::int,
%(rate)s::float8, %(priority)s::int, %(deadline)s::timestamptz, %(not_before)s::timestamptz, %(keep)s::float8,
%(lane_by)s::text, %(lane_width)s::int, %(lanes)s::int

-- name: job_signature
-- The job's actor and its arguments, as a worker announced them. Caller: actions.limit. Rows: one, (name, signature);
-- none: its items have several actors, or no worker announced it.
SELECT a.name, a.signature FROM callboard.jobs AS j JOIN callboard.actors AS a ON a.name = j.actor WHERE j.id = %(job)s

-- name: job_limits
-- The limits of a job, locked while they are changed. Caller: actions.limit. Rows: (limits); none: it was deleted
-- meanwhile.
SELECT limits FROM callboard.jobs WHERE id = %(job)s AND deleted_at IS NULL FOR NO KEY UPDATE
