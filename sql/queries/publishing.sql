-- name: claim_bulk
-- The next job that has something to publish in its turn, for as long as the lease lasts.
-- Guard: open, its time has come, neither paused nor being stopped, its limits leave something, and no publisher at work.
-- A job whose actor no living worker has stays where it is while some worker lives: it would look at each message, and
-- make a row of it again. With none alive messages wait on the broker, as deep as a queue may be.
-- Tenants are served in turn, and so are the jobs of a tenant: who was served longest ago is next.
-- What a rate allows, gathered over a second at most, is used up by the claim.
-- Of a limited job is out what was published and has not ended, but for what is to be published once more: was it lost, or
-- did it come to a worker without its actor, it would hold its place against itself.
-- A claim that lapsed was abandoned: its holder may have sent what lies up to a window beyond the watermark.
-- Caller: the publisher. Rows: BulkClaim; its queue is that of the first message when the job has none. None: no such job.
WITH living AS (
    SELECT actors FROM callboard.live_workers(%(dead_after)s)
), tenants AS (
    SELECT t.tenant, max(t.served_at) AS served_at FROM callboard.jobs AS t WHERE t.finished_at IS NULL GROUP BY t.tenant
), next AS (
    SELECT j.id, j.served_at, l.limited, j.publish_until IS NOT NULL AS abandoned, l.out, r.base,
           CASE WHEN j.rate IS NOT NULL THEN floor(extract(epoch FROM now() - r.base) * j.rate + 1e-6)::int END AS starts
    FROM callboard.jobs AS j JOIN tenants AS t ON t.tenant = j.tenant
    CROSS JOIN LATERAL (
        SELECT j.concurrency IS NOT NULL OR j.rate IS NOT NULL OR j.lane_by IS NOT NULL AS limited,
               greatest(j.published - j.in_turn - j.succeeded - j.failed - j.skipped - j.cancelled - j.retrying
                        - CASE WHEN j.concurrency IS NULL AND j.rate IS NULL THEN 0 ELSE (
                            SELECT count(*) FROM callboard.outbox AS o
                            JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
                            WHERE o.job_id = j.id AND o.resend AND o.due_at <= now() AND NOT o.first AND NOT o.in_turn AND NOT o.dead
                              AND (o.claimed_until IS NULL OR o.claimed_until <= now()) AND i.state = 'waiting') END, 0) AS out
    ) AS l
    CROSS JOIN LATERAL (
        SELECT greatest(coalesce(j.rate_ready, now() - make_interval(secs => 1 / j.rate)),
                        now() - make_interval(secs => greatest(1, 1 / j.rate))) AS base
    ) AS r
    WHERE j.finished_at IS NULL AND j.stopping IS NULL AND j.state <> 'paused'
      AND (j.not_before IS NULL OR j.not_before <= now())
      AND (j.watermark < j.bulk_end OR j.in_turn > 0 OR l.limited AND EXISTS (
               SELECT FROM callboard.outbox AS o WHERE o.job_id = j.id AND o.due_at <= now()))
      AND (j.publish_until IS NULL OR j.publish_until < now())
      AND (j.actor IS NULL OR j.actor IN (SELECT unnest(actors) FROM living) OR NOT EXISTS (SELECT FROM living))
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
                             WHERE o.job_id = j.id AND (o.in_turn AND o.due_at = 'infinity' OR o.due_at <= now())
                             ORDER BY o.item LIMIT 1), ''),
          j.in_turn, least(j.concurrency - next.out, next.starts), next.limited, coalesce(j.chunk, 1), next.served_at,
          j.lane_by, j.lane_width, j.applied_lane_by

-- name: claim_in_turn
-- Messages that are published in their job's turn (all of a limited job's), in order of their items, for as long as the lease lasts.
-- Guard: unclaimed or abandoned (then it may have been published: suspect). Caller: the publisher, which holds the job's
-- claim. Rows: Outgoing.
WITH due AS (
    SELECT o.id, o.claimed_until IS NOT NULL AS lapsed FROM callboard.outbox AS o
    WHERE o.job_id = %(job)s AND (o.in_turn AND o.due_at = 'infinity' OR %(limited)s AND o.due_at <= now())
      AND (o.claimed_until IS NULL OR o.claimed_until <= now())
    ORDER BY o.item LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), {claimed}
{outgoing}
ORDER BY c.item

-- part: claimed
-- The rows of the outbox that `due` (id, lapsed) has locked are claimed for as long as the lease lasts. One that was claimed
-- before is suspect from now on.
claimed AS (
    UPDATE callboard.outbox AS o
    SET claimed_until = now() + make_interval(secs => %(lease)s), suspect = o.suspect OR due.lapsed
    FROM due WHERE o.id = due.id
    RETURNING o.*
)

-- part: outgoing
-- The messages that `claimed` has. Rows: Outgoing.
SELECT c.job_id, c.item, c.attempt, j.epoch, c.suspect, coalesce(i.actor, j.actor), coalesce(i.queue, j.queue),
       coalesce(i.message_id, c.job_id || '-' || c.item), i.args,
       coalesce(c.options, i.retry_options, i.options),
       coalesce(c.sent_ms, (extract(epoch FROM i.sent_at) * 1000)::bigint), c.id, c.dead,
       j.standing_on IS NOT NULL
FROM claimed AS c JOIN callboard.items AS i USING (job_id, item) JOIN callboard.jobs AS j ON j.id = c.job_id

-- name: bulk_items
-- What lies in a stretch of a job's bulk range. Children stored in between have a message id and their own
-- path. Caller: the publisher. Rows: (item, attempt, args, options), by item.
SELECT item, attempt, args, coalesce(retry_options, options) FROM callboard.items
WHERE job_id = %s AND item >= %s AND item < %s AND message_id IS NULL ORDER BY item

-- name: advance_watermark
-- A stretch of bulk items is confirmed. The watermark only moves forward.
-- Guard: the claim is still this publisher's (its token). Caller: the publisher. Rows: (go on); none: taken over, stop.
-- `keep` renews the claim while the job goes on; otherwise it is given back, with what is uncertain beyond the watermark
-- marked suspect. `unserved`: nothing was published, so its turn is given back too.
UPDATE callboard.jobs
SET watermark = greatest(watermark, %(watermark)s),
    published = published + %(published)s,
    suspect_below = greatest(suspect_below, %(suspect_below)s),
    publish_until = CASE WHEN %(keep)s AND stopping IS NULL AND state <> 'paused'
                         THEN now() + make_interval(secs => %(lease)s) END,
    served_at = CASE WHEN %(unserved)s THEN %(served_at)s ELSE served_at END,
    updated_at = CASE WHEN %(published)s > 0 THEN now() ELSE updated_at END
WHERE id = %(job)s AND publish_token = %(token)s AND publish_until IS NOT NULL
RETURNING stopping IS NULL AND state <> 'paused'

-- name: claim_outbox
-- Messages that are due, for as long as the lease lasts.
-- Guard: due, unclaimed or abandoned (then it may have been published: suspect), its job open, its time has come, and it
-- is neither paused nor being stopped nor limited (see claim_in_turn); what is for the dead letters goes there whatever
-- became of the job.
-- Caller: the publisher. Rows: Outgoing.
WITH due AS (
    SELECT o.id, o.claimed_until IS NOT NULL AS lapsed FROM callboard.outbox AS o
    WHERE o.due_at <= now() AND (o.claimed_until IS NULL OR o.claimed_until <= now())
      AND (o.dead OR EXISTS (SELECT FROM callboard.jobs AS j
                             WHERE j.id = o.job_id AND j.finished_at IS NULL AND j.stopping IS NULL
                                   AND j.state <> 'paused' AND j.concurrency IS NULL AND j.rate IS NULL
                                   AND j.lane_by IS NULL AND (j.not_before IS NULL OR j.not_before <= now())))
    ORDER BY o.due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), {claimed}
{outgoing}
ORDER BY c.due_at

-- name: renew_outbox
-- The broker is slow to confirm these messages: their claims hold for longer.
-- Guard: the row is still claimed, for the attempt that was sent; a claim that expired may be another publisher's.
-- Caller: the publisher. Lock order: rows of the outbox, without waiting for any: of one that is locked the claim expires.
WITH held AS (
    SELECT o.id FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt)
    JOIN callboard.outbox AS o ON o.id = s.id AND o.attempt = s.attempt AND o.claimed_until > now()
    FOR UPDATE OF o SKIP LOCKED
)
UPDATE callboard.outbox AS o SET claimed_until = now() + make_interval(secs => %(lease)s)
FROM held AS h WHERE o.id = h.id

-- name: confirm_outbox
-- These messages are confirmed. Transition: retrying -> waiting; a first message counts as published, one
-- that was published in its job's turn waits for it no more.
-- Guard: the outbox row still holds the attempt that was sent. One that was written anew meanwhile, for the retry of an
-- attempt that failed already or as its dead letter, stays.
-- Caller: the publisher. Lock order: items by key, their outbox rows, then jobs by id.
WITH sent AS (
    SELECT id, max(attempt) AS attempt FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt) GROUP BY id
), held AS (
    SELECT o.id, s.attempt, i.attempt = s.attempt AND i.state = 'retrying' AS waits
    FROM sent AS s JOIN callboard.outbox AS o ON o.id = s.id
    JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
), lying AS (
    SELECT o.id, o.job_id, o.first, o.in_turn, h.waits, o.attempt = h.attempt AND o.claimed_until IS NOT NULL AS done
    FROM held AS h JOIN callboard.outbox AS o ON o.id = h.id
    FOR UPDATE OF o
), gone AS (
    DELETE FROM callboard.outbox AS o USING lying AS l WHERE o.id = l.id AND l.done
    RETURNING o.job_id, o.item, l.waits
), kept AS (
    UPDATE callboard.outbox AS o SET first = false, in_turn = false
    FROM lying AS l WHERE o.id = l.id AND NOT l.done AND (l.first OR l.in_turn)
), moved AS (
    UPDATE callboard.items AS i SET was = i.state, state = 'waiting'
    FROM gone AS g WHERE i.job_id = g.job_id AND i.item = g.item AND g.waits
    RETURNING i.job_id
), delta AS (
    SELECT job_id, sum(published) AS published, sum(retrying) AS retrying, sum(in_turn) AS in_turn
    FROM (
        SELECT job_id, count(*) FILTER (WHERE first) AS published, 0 AS retrying, count(*) FILTER (WHERE in_turn) AS in_turn
        FROM lying GROUP BY job_id
        UNION ALL
        SELECT job_id, 0, count(*), 0 FROM moved GROUP BY job_id
    ) AS part
    GROUP BY job_id
), locked AS (
    SELECT j.id FROM callboard.jobs AS j JOIN delta AS d ON d.job_id = j.id ORDER BY j.id FOR NO KEY UPDATE OF j
)
UPDATE callboard.jobs AS j
SET published = j.published + d.published, retrying = j.retrying - d.retrying, in_turn = j.in_turn - d.in_turn, updated_at = now()
FROM delta AS d JOIN locked AS l ON l.id = d.job_id
WHERE j.id = d.job_id

-- name: release_outbox
-- These messages could not be published, or nobody knows; whoever claims them next sends them as suspect.
-- Those that were refused are due after a `pause` only, behind all others, or they would be the first each time.
-- Guard: the row is still claimed, for the attempt that was to be sent; else it is that of a retry, or parked.
-- Caller: the publisher. Lock order: rows of the outbox, without waiting for any: of one that is locked the claim lapses.
WITH unsent AS (
    SELECT o.id, o.attempt = s.attempt AND o.claimed_until IS NOT NULL AS claimed
    FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt) JOIN callboard.outbox AS o ON o.id = s.id
    FOR UPDATE OF o SKIP LOCKED
)
UPDATE callboard.outbox AS o
SET claimed_until = now(),
    due_at = CASE WHEN %(pause)s > 0 AND o.due_at < 'infinity' THEN now() + make_interval(secs => %(pause)s)
                  ELSE o.due_at END
FROM unsent AS u WHERE o.id = u.id AND u.claimed
