-- create_parent: a job of stages, or the one that has this key already. Its limits but for `keep` are words only: they
-- hold for its stages. Caller: stages.create. Rows: one, (id, created, stages: NULL for a job that has none).
INSERT INTO callboard.jobs AS j (name, key, tenant, metadata, created_by, callbacks, limits, keep, stages)
VALUES (%(name)s, %(key)s, %(tenant)s, %(metadata)s::jsonb, %(created_by)s, %(callbacks)s::jsonb, %(limits)s::jsonb,
        %(keep)s, %(stages)s)
ON CONFLICT (tenant, key) WHERE key IS NOT NULL DO UPDATE SET key = j.key
RETURNING id, xmax = 0, stages
