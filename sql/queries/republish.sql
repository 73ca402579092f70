-- republish: these items' messages are lost; send them again, as suspect, since nobody can be sure.
-- Guard: the row still carries that attempt and waits, and nobody is known to hold it; and, of a sweep that was frozen
-- and comes to, that it has the lease still: another may have sent them meanwhile. Caller: the search. Rows: (item).
-- Lock order: items by key, then their outbox rows: the inner query locks one at a time, in the order of the outer.
-- OFFSET 0 keeps the planner from reading all of a large job for some thousand of its items.
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect, again)
SELECT i.job_id, i.item, i.attempt, now(), false, true, true
FROM (SELECT * FROM unnest(%(item)s::int[], %(attempt)s::int[]) AS l (item, attempt) ORDER BY item) AS l
CROSS JOIN LATERAL (
    SELECT job_id, item, attempt, state FROM callboard.items AS i
    WHERE i.job_id = %(job)s AND i.item = l.item OFFSET 0 FOR NO KEY UPDATE
) AS i
WHERE i.attempt = l.attempt AND i.state = 'waiting'
  AND (%(holder)s::text IS NULL OR EXISTS (
      SELECT FROM callboard.leases AS s WHERE s.name = 'sweep' AND s.holder = %(holder)s AND s.until >= now()))
  AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item OFFSET 0)
  AND NOT (i.item = ANY (
      SELECT w.holds[n + 1] FROM callboard.workers AS w, generate_series(1, cardinality(w.holds), 2) AS n
      WHERE w.stopped_at IS NULL AND w.died_at IS NULL AND w.holds[n] = %(job)s))
ON CONFLICT (job_id, item) DO NOTHING
RETURNING item
