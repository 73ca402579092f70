-- declare_dead: take a worker for dead. Guard: its heartbeat stopped, or it ended already.
-- Caller: bury. Rows: (id); none: it lives. The row stays locked to the end of the burial, so one buries at a time.
UPDATE callboard.workers SET died_at = coalesce(died_at, now()), held = 0, holds = '{}'
WHERE id = %(worker)s
  AND (stopped_at IS NOT NULL OR died_at IS NOT NULL OR beat_at < now() - make_interval(secs => %(limit)s))
RETURNING id
