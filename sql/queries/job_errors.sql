-- job_errors: a job's errors, one row a kind, those that cost most items first. Caller: reads.errors.
SELECT kind::text AS kind, error_type AS type, place, count, failed, first_at, last_at, item,
       left(message, %(cap)s) AS message
FROM callboard.errors
WHERE job_id = %(job)s AND EXISTS (SELECT FROM callboard.jobs AS j WHERE j.id = %(job)s AND j.leaving_at IS NULL)
ORDER BY failed DESC, count DESC, kind, error_type, place LIMIT %(limit)s
