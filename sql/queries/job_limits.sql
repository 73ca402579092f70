-- job_limits: what a job may do at most, locked while it is changed. Caller: controls.limit. Rows: (limits); none: it left meanwhile.
SELECT limits FROM callboard.jobs WHERE id = %s AND leaving_at IS NULL FOR NO KEY UPDATE
