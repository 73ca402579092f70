-- dead_workers: workers to bury: their heartbeat stopped, or they ended and left rows in `running`.
-- Caller: the sweep. Rows: (id).
SELECT id FROM callboard.workers
WHERE stopped_at IS NULL AND died_at IS NULL AND beat_at < now() - make_interval(secs => %(limit)s)
UNION
SELECT w.id FROM callboard.running AS r JOIN callboard.workers AS w ON w.id = r.worker
WHERE w.stopped_at IS NOT NULL OR w.died_at IS NOT NULL
