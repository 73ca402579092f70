-- create_job: a job, or the one that has this key already.
-- Caller: submit, job(). Rows: one, (id, created, state, sealed, consumed, actor).
WITH made AS (
    INSERT INTO callboard.jobs (name, key, tenant, actor, queue, metadata, priority, created_by)
    VALUES (%(name)s, %(key)s, %(tenant)s, %(actor)s, %(queue)s, %(metadata)s::jsonb, %(priority)s, %(created_by)s)
    ON CONFLICT (tenant, key) WHERE key IS NOT NULL DO NOTHING
    RETURNING id, true, state, sealed, consumed, actor
)
SELECT id, true, state::text, sealed, consumed, coalesce(actor, '') FROM made
UNION ALL
SELECT id, false, state::text, sealed, consumed, coalesce(actor, '') FROM callboard.jobs
WHERE key = %(key)s AND tenant = %(tenant)s
LIMIT 1
