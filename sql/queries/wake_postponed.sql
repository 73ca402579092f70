-- wake_postponed: a worker lives again that has the actor of these messages: they are due.
-- Caller: the sweep.
WITH able AS (
    SELECT DISTINCT unnest(actors) AS actor FROM callboard.workers
    WHERE stopped_at IS NULL AND died_at IS NULL AND beat_at > now() - make_interval(secs => %(dead_after)s)
)
UPDATE callboard.outbox AS o SET due_at = now()
FROM callboard.items AS i, callboard.jobs AS j
WHERE o.due_at = timestamptz '9999-01-01Z'
  AND i.job_id = o.job_id AND i.item = o.item AND j.id = o.job_id
  AND coalesce(i.actor, j.actor) IN (SELECT actor FROM able)
