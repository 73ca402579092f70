-- job_limits: what a job may do at most, locked while it is changed. Caller: controls.limit. Rows: (limits).
SELECT limits FROM callboard.jobs WHERE id = %s FOR NO KEY UPDATE
