-- report_stacks: where attempts stand that take far longer than their actor usually does.
-- Guard: the row in `running` is still this worker's and of that attempt. Caller: the journal.
-- Lock order: items by key, then their rows in `running`.
WITH held AS (
    SELECT s.* FROM unnest(%(job)s::bigint[], %(item)s::int[], %(attempt)s::int[], %(place)s::text[], %(stack)s::text[])
        AS s (job_id, item, attempt, place, stack)
    JOIN callboard.items AS i ON i.job_id = s.job_id AND i.item = s.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
)
UPDATE callboard.running AS r SET place = s.place, stack = s.stack, stack_at = now()
FROM held AS s
WHERE r.job_id = s.job_id AND r.item = s.item AND r.attempt = s.attempt AND r.worker = %(worker)s
