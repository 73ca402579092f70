-- report_stacks: where attempts stand that take far longer than their actor usually does.
-- Guard: the row in `running` is still this worker's and of that attempt. Caller: the journal.
-- Lock order: items by key, then their rows in `running`.
WITH held AS (
    SELECT s.* FROM unnest(%(job)s::bigint[], %(item)s::int[], %(attempt)s::int[], %(place)s::text[], %(stack)s::text[])
        AS s (job_id, item, attempt, place, stack)
    JOIN callboard.items AS i ON i.job_id = s.job_id AND i.item = s.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
), lying AS (
    SELECT h.*, r.attempt = h.attempt AND r.worker = %(worker)s AS ours
    FROM held AS h JOIN callboard.running AS r ON r.job_id = h.job_id AND r.item = h.item
    WHERE (SELECT count(*) FROM held) >= 0  -- these first
    ORDER BY r.job_id, r.item FOR UPDATE OF r
)
UPDATE callboard.running AS r SET place = l.place, stack = l.stack, stack_at = now()
FROM lying AS l WHERE r.job_id = l.job_id AND r.item = l.item AND l.ours
