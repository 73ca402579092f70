-- job_stand: how a job stands, before it is told something. Caller: controls.
-- Rows: one, (state, being stopped, failed, skipped, cancelled, has stages, whose stage it is); none: no such job (one that
-- is leaving is none), or not of this tenant.
SELECT state::text, stopping IS NOT NULL, failed, skipped,
       CASE WHEN finished_at IS NULL THEN cancelled ELSE total - succeeded - failed - skipped END,
       stages IS NOT NULL, parent_id
FROM callboard.jobs WHERE id = %(job)s AND leaving_at IS NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s)
