-- job_errors: the errors of a job, or of all of its stages, one row a kind, those that cost most items first.
-- Caller: reads.errors.
SELECT e.job_id AS job, j.stage, e.kind::text AS kind, e.error_type AS type, e.place, e.count, e.failed, e.first_at,
       e.last_at, e.item, left(e.message, %(cap)s) AS message
FROM callboard.jobs AS j JOIN callboard.errors AS e ON e.job_id = j.id
WHERE (j.id = %(job)s OR j.parent_id = %(job)s) AND j.leaving_at IS NULL
ORDER BY j.stage, e.failed DESC, e.count DESC, e.kind, e.error_type, e.place LIMIT %(limit)s
