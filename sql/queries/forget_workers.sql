-- forget_workers: worker processes that ended long ago. Guard: nothing of theirs waits to be buried.
-- Caller: the sweep, `callboard purge`. Rows: none, counted.
DELETE FROM callboard.workers AS w
WHERE w.id IN (
    SELECT o.id FROM callboard.workers AS o
    WHERE coalesce(o.stopped_at, o.died_at) < now() - make_interval(secs => %(keep)s::float8)
      AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.worker = o.id)
    ORDER BY o.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
