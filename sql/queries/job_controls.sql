-- job_controls: what jobs tell all workers: those told something within so many seconds, or all that may still have
-- messages in RabbitMQ; and so of those that left. Caller: the heartbeat. Rows: Control.
-- Apart, so that the first, which each worker asks twice a second, reads only those, down the index.
SELECT id, state::text, epoch, stopping IS NOT NULL FROM callboard.jobs
WHERE told_at > now() - make_interval(secs => %(within)s::float8)
UNION ALL
SELECT id, state::text, epoch, stopping IS NOT NULL FROM callboard.jobs
WHERE %(within)s::float8 IS NULL AND told_at IS NOT NULL
  AND (finished_at IS NULL OR published > succeeded + failed + skipped)
UNION ALL
SELECT id, 'cancelled', epoch, false FROM callboard.gone
WHERE %(within)s::float8 IS NULL OR gone_at > now() - make_interval(secs => %(within)s::float8)
