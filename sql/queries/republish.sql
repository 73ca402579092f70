-- republish: these items' messages are lost; send them again, as suspect, since nobody can be sure.
-- Guard: the row still carries that attempt and waits. Caller: the sweep. Rows: (item).
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect)
SELECT i.job_id, i.item, i.attempt, now(), false, true
FROM unnest(%(item)s::int[], %(attempt)s::int[]) AS l (item, attempt)
JOIN callboard.items AS i ON i.job_id = %(job)s AND i.item = l.item AND i.attempt = l.attempt AND i.state = 'waiting'
ON CONFLICT (job_id, item) DO NOTHING
RETURNING item
