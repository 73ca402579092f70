-- unheld_items: published items of a stretch of a job that are open and that nobody is known to hold: not in the
-- outbox, not in `running`, not in any live worker's hands at its last beat. They are queued, or lost.
-- OFFSET 0: looked up for each, whatever the planner makes of a job that it doesn't know.
-- Caller: the search for lost messages. Rows: (item, attempt, queue), by item.
SELECT i.item, i.attempt, coalesce(i.queue, j.queue)
FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id
WHERE i.job_id = %(job)s AND i.item >= %(low)s AND i.item < %(high)s AND i.state = 'waiting'
  AND (i.message_id IS NOT NULL OR i.item < j.watermark)
  AND NOT EXISTS (SELECT FROM callboard.outbox AS o WHERE o.job_id = i.job_id AND o.item = i.item OFFSET 0)
  AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item OFFSET 0)
  AND NOT (i.item = ANY (
      SELECT w.holds[n + 1] FROM callboard.workers AS w, generate_series(1, cardinality(w.holds), 2) AS n
      WHERE w.stopped_at IS NULL AND w.died_at IS NULL AND w.holds[n] = %(job)s))
ORDER BY i.item LIMIT %(limit)s
