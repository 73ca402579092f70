-- job_controls: what jobs tell all workers: those told something within so many seconds, or all that may still have
-- messages in RabbitMQ; and so of those that left. Caller: the heartbeat. Rows: Control.
SELECT id, state::text, epoch, stopping IS NOT NULL FROM callboard.jobs
WHERE told_at IS NOT NULL
  AND CASE WHEN %(within)s::float8 IS NULL THEN finished_at IS NULL OR published > succeeded + failed + skipped
           ELSE told_at > clock_timestamp() - make_interval(secs => %(within)s::float8) END
UNION ALL
SELECT id, 'cancelled', epoch, false FROM callboard.gone
WHERE %(within)s::float8 IS NULL OR gone_at > clock_timestamp() - make_interval(secs => %(within)s::float8)
