-- item_attempts: the attempts of an item that did not simply succeed, in order; `retried`: the item was given another, by
-- itself or by hand. Caller: reads.attempts.
SELECT a.attempt, a.kind::text AS kind, a.attempt < i.attempt AS retried, a.worker, a.started_at, a.ended_at,
       a.error_type AS type, a.place, left(a.message, %(cap)s) AS message, left(a.traceback, %(cap)s) AS traceback,
       a.traceback_size
FROM callboard.attempts AS a
JOIN callboard.items AS i ON i.job_id = a.job_id AND i.item = a.item
JOIN callboard.jobs AS j ON j.id = a.job_id AND j.leaving_at IS NULL
WHERE a.job_id = %(job)s AND a.item = %(item)s
ORDER BY a.attempt LIMIT %(limit)s
