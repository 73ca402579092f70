-- create_job: a job that is being submitted, or the one that has this key already: while it is open it is taken up.
-- Caller: submit, job(). Rows: one, (id, created, state, sealed, consumed, actor).
WITH made AS (
    INSERT INTO callboard.jobs AS j (
        name, key, tenant, actor, queue, metadata, created_by, submitting_until, chunk,
        callbacks, limits, fail_count, fail_share, fail_sample, concurrency, rate, priority, deadline, not_before, keep,
        lane_by, lane_width
    )
    VALUES (%(name)s, %(key)s, %(tenant)s, %(actor)s, %(queue)s, %(metadata)s::jsonb, %(created_by)s,
            now() + make_interval(secs => %(lease)s), nullif(%(chunk)s::int, 1),
            %(callbacks)s::jsonb, %(limits)s::jsonb, %(fail_count)s, %(fail_share)s, %(fail_sample)s, %(concurrency)s,
            %(rate)s, %(priority)s, %(deadline)s, %(not_before)s, %(keep)s, %(lane_by)s, %(lane_width)s)
    ON CONFLICT (tenant, key) WHERE key IS NOT NULL DO UPDATE SET submitting_until = excluded.submitting_until
    WHERE NOT j.sealed AND j.finished_at IS NULL AND j.stopping IS NULL AND j.stages IS NULL
    RETURNING id, xmax = 0 AS created, state, sealed, consumed, actor
)
SELECT id, created, state::text, sealed, consumed, coalesce(actor, '') FROM made
UNION ALL
SELECT id, false, state::text, sealed, consumed, coalesce(actor, '') FROM callboard.jobs
WHERE key = %(key)s AND tenant = %(tenant)s
LIMIT 1
