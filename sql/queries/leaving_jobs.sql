-- leaving_jobs: jobs whose rows are to go. Caller: whoever clears them away. Rows: (id).
SELECT id FROM callboard.jobs WHERE leaving_at IS NOT NULL ORDER BY id
