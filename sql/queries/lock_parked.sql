-- lock_parked: items whose messages are about to be parked, locked by a statement of its own: what two workers that park
-- copies of one message do is seen by the second only in the next statement. Caller: park. Lock order: items by key.
SELECT FROM unnest(%(job)s::bigint[], %(item)s::int[]) AS g (job_id, item)
JOIN callboard.items AS i ON i.job_id = g.job_id AND i.item = g.item
ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
