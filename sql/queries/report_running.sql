-- report_running: items in hand for a while, what they say they are doing, and how far they are.
-- Guard: the item, locked, still carries that attempt and isn't final; a row of another worker stays as it is.
-- Caller: the journal. Lock order: items by key, then their rows in `running`.
WITH held AS (
    SELECT e.*, i.attempt = e.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM unnest(%(job)s::bigint[], %(item)s::int[], %(attempt)s::int[], %(age)s::float8[], %(step)s::text[],
                %(done)s::float8[], %(total)s::float8[])
        AS e (job_id, item, attempt, age, step, done, total)
    JOIN callboard.items AS i ON i.job_id = e.job_id AND i.item = e.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
)
INSERT INTO callboard.running AS r (job_id, item, attempt, worker, started_at, step, progress_done, progress_total)
SELECT h.job_id, h.item, h.attempt, %(worker)s, now() - make_interval(secs => h.age), h.step, h.done, h.total
FROM held AS h WHERE h.open AND (SELECT count(*) FROM held) >= 0  -- these first
ORDER BY h.job_id, h.item
ON CONFLICT (job_id, item) DO UPDATE
SET step = excluded.step, attempt = excluded.attempt,
    progress_done = excluded.progress_done, progress_total = excluded.progress_total,
    place = CASE WHEN r.attempt = excluded.attempt THEN r.place END,
    stack = CASE WHEN r.attempt = excluded.attempt THEN r.stack END,
    stack_at = CASE WHEN r.attempt = excluded.attempt THEN r.stack_at END
WHERE r.worker = excluded.worker
