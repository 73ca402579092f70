-- claim_bulk: the next job that has something to publish in its turn, for as long as the lease lasts.
-- Guard: open, neither paused nor being stopped, and no publisher at work. Jobs are served in turn.
-- A claim that lapsed was abandoned: its holder may have sent what lies up to a window beyond the watermark.
-- Caller: the publisher. Rows: BulkClaim; its queue is that of the first message when the job has none. None: no such job.
WITH next AS (
    SELECT id, publish_until IS NOT NULL AS abandoned FROM callboard.jobs
    WHERE finished_at IS NULL AND stopping IS NULL AND state <> 'paused' AND (watermark < bulk_end OR redo > 0)
      AND (publish_until IS NULL OR publish_until < now())
      AND (queue IS NULL OR queue <> ALL (%(full)s)) AND id <> ALL (%(passed)s::bigint[])
      AND (%(job)s::bigint IS NULL OR id = %(job)s)
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
RETURNING j.id, j.publish_token, j.watermark, j.suspect_below, j.bulk_end, j.epoch, coalesce(j.actor, ''),
          coalesce(j.queue, (SELECT i.queue FROM callboard.outbox AS o
                             JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
                             WHERE o.job_id = j.id AND o.redo AND o.due_at = 'infinity' ORDER BY o.item LIMIT 1), ''),
          j.redo
