-- held_by: what a dead worker held, with the crashes of each item. Caller: bury, in order of key.
-- Rows: (job_id, item, attempt, crashes, seconds since its attempt started).
SELECT r.job_id, r.item, r.attempt, i.crashes, extract(epoch FROM now() - r.started_at)::float8
FROM callboard.running AS r JOIN callboard.items AS i USING (job_id, item)
WHERE r.worker = %s ORDER BY r.job_id, r.item
