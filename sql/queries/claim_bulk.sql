-- claim_bulk: the next job that has something to publish in its turn, for as long as the lease lasts.
-- Guard: open, its time has come, neither paused nor being stopped, its limits leave something, and no publisher at work.
-- A job whose actor no living worker has stays where it is while some worker lives: it would look at each message, and
-- make a row of it again. With none alive messages wait on the broker, as deep as a queue may be; and what no worker ever
-- had is sent, and fails.
-- Tenants are served in turn, and so are the jobs of a tenant: who was served longest ago is next.
-- What a rate allows, gathered over a second at most, is used up by the claim.
-- Of a limited job is out what was published and has not ended, but for what is to be published once more: was it lost, or
-- did it come to a worker without its actor, it would hold its place against itself.
-- A claim that lapsed was abandoned: its holder may have sent what lies up to a window beyond the watermark.
-- Caller: the publisher. Rows: BulkClaim; its queue is that of the first message when the job has none. None: no such job.
WITH living AS (
    SELECT w.actors FROM callboard.workers AS w
    WHERE w.stopped_at IS NULL AND w.died_at IS NULL AND w.beat_at > now() - make_interval(secs => %(dead_after)s)
), tenants AS (
    SELECT t.tenant, max(t.served_at) AS served_at FROM callboard.jobs AS t WHERE t.finished_at IS NULL GROUP BY t.tenant
), next AS (
    SELECT j.id, j.served_at, l.limited, j.publish_until IS NOT NULL AS abandoned, l.out, r.base,
           CASE WHEN j.rate IS NOT NULL THEN floor(extract(epoch FROM now() - r.base) * j.rate + 1e-6)::int END AS starts
    FROM callboard.jobs AS j JOIN tenants AS t ON t.tenant = j.tenant
    CROSS JOIN LATERAL (
        SELECT j.concurrency IS NOT NULL OR j.rate IS NOT NULL OR j.lane_by IS NOT NULL AS limited,
               greatest(j.published - j.redo - j.succeeded - j.failed - j.skipped - j.cancelled - j.retrying
                        - CASE WHEN j.concurrency IS NULL AND j.rate IS NULL THEN 0 ELSE (
                            SELECT count(*) FROM callboard.outbox AS o
                            JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
                            WHERE o.job_id = j.id AND o.again AND o.due_at <= now() AND NOT o.first AND NOT o.redo AND NOT o.dead
                              AND (o.claimed_until IS NULL OR o.claimed_until <= now()) AND i.state = 'waiting') END, 0) AS out
    ) AS l
    CROSS JOIN LATERAL (
        SELECT greatest(coalesce(j.rate_ready, now() - make_interval(secs => 1 / j.rate)),
                        now() - make_interval(secs => greatest(1, 1 / j.rate))) AS base
    ) AS r
    WHERE j.finished_at IS NULL AND j.stopping IS NULL AND j.state <> 'paused'
      AND (j.not_before IS NULL OR j.not_before <= now())
      AND (j.watermark < j.bulk_end OR j.redo > 0 OR l.limited AND EXISTS (
               SELECT FROM callboard.outbox AS o WHERE o.job_id = j.id AND o.due_at <= now()))
      AND (j.publish_until IS NULL OR j.publish_until < now())
      AND (j.actor IS NULL OR j.actor IN (SELECT unnest(actors) FROM living) OR NOT EXISTS (SELECT FROM living)
           OR NOT EXISTS (SELECT FROM callboard.actors AS a WHERE a.name = j.actor))
      AND (j.concurrency IS NULL OR l.out < j.concurrency)
      AND (j.rate IS NULL
           OR r.base <= now() - make_interval(secs => 1 / j.rate)
              AND l.out - (SELECT count(*) FROM callboard.running AS r WHERE r.job_id = j.id) < greatest(ceil(j.rate), 1))
      AND (j.queue IS NULL OR j.queue <> ALL (%(full)s)) AND j.id <> ALL (%(passed)s::bigint[])
      AND (%(job)s::bigint IS NULL OR j.id = %(job)s)
    ORDER BY j.priority, t.served_at NULLS FIRST, j.served_at NULLS FIRST, j.id
    LIMIT 1 FOR NO KEY UPDATE OF j SKIP LOCKED
)
UPDATE callboard.jobs AS j
SET publish_token = j.publish_token + 1,
    publish_until = now() + make_interval(secs => %(lease)s),
    served_at = clock_timestamp(),
    rate_ready = CASE WHEN j.rate IS NOT NULL THEN next.base + make_interval(secs => next.starts / j.rate) END,
    suspect_below = CASE WHEN next.abandoned THEN greatest(j.suspect_below, j.watermark + %(window)s)
                         ELSE j.suspect_below END
FROM next WHERE j.id = next.id
RETURNING j.id, j.publish_token, j.watermark, j.suspect_below, j.bulk_end, j.epoch, coalesce(j.actor, ''),
          coalesce(j.queue, (SELECT i.queue FROM callboard.outbox AS o
                             JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
                             WHERE o.job_id = j.id AND (o.redo AND o.due_at = 'infinity' OR o.due_at <= now())
                             ORDER BY o.item LIMIT 1), ''),
          j.redo, least(j.concurrency - next.out, next.starts), next.limited, coalesce(j.chunk, 1), next.served_at,
          j.lane_by, j.lane_width, j.laned_by
