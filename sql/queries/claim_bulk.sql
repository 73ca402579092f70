-- claim_bulk: the next job whose bulk items may be published, for as long as the lease lasts.
-- Guard: open, not paused, something left below bulk_end, and no publisher at work. Jobs are served in turn.
-- A claim that lapsed was abandoned: its holder may have sent what lies up to a window beyond the watermark.
-- Caller: the publisher. Rows: BulkClaim; none: nothing to do.
WITH next AS (
    SELECT id, publish_until IS NOT NULL AS abandoned FROM callboard.jobs
    WHERE finished_at IS NULL AND state <> 'paused' AND watermark < bulk_end
      AND (publish_until IS NULL OR publish_until < now())
      AND queue <> ALL (%(full)s) AND (%(job)s::bigint IS NULL OR id = %(job)s)
    ORDER BY priority, served_at NULLS FIRST, id
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE callboard.jobs AS j
SET publish_token = j.publish_token + 1,
    publish_until = now() + make_interval(secs => %(lease)s),
    served_at = clock_timestamp(),
    suspect_below = CASE WHEN next.abandoned THEN greatest(j.suspect_below, j.watermark + %(window)s)
                         ELSE j.suspect_below END
FROM next WHERE j.id = next.id
RETURNING j.id, j.publish_token, j.watermark, j.suspect_below, j.bulk_end, j.epoch, j.actor, j.queue
