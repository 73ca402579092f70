-- item_attempts: the attempts of an item that did not simply succeed, in order. Caller: reads.attempts.
SELECT attempt, kind::text AS kind, retried, worker, started_at, ended_at, error_type AS type, place,
       left(message, %(cap)s) AS message, left(traceback, %(cap)s) AS traceback, traceback_size
FROM callboard.attempts WHERE job_id = %(job)s AND item = %(item)s
  AND EXISTS (SELECT FROM callboard.jobs AS j WHERE j.id = %(job)s AND j.leaving_at IS NULL)
ORDER BY attempt LIMIT %(limit)s
