-- name: due_queues
-- The queues with something to publish. Caller: the publisher, each round; none: it has nothing to do.
-- Rows: (queue, whether claim_outbox finds it, whether claim_job does); only one of those that claim_job finds. Of the jobs
-- `passed` only dead letters count.
SELECT DISTINCT target, true, false FROM callboard.turns
WHERE NOT held AND NOT over AND NOT limited AND due_at <= now() AND {its_time_is}
  AND {has_room} AND job_id <> ALL (%(passed)s::bigint[])
UNION ALL
(SELECT target, false, true FROM callboard.turns
 WHERE NOT held AND NOT over AND least(bulk_at, due_at) <= now() AND (bulk_at <= now() OR limited) AND {its_time_is}
   AND {has_room} AND job_id <> ALL (%(passed)s::bigint[])
 ORDER BY least(bulk_at, due_at) LIMIT 1)
UNION ALL
SELECT '', true, false
WHERE EXISTS (SELECT FROM callboard.outbox
              WHERE dead AND due_at <= now() AND (claimed_until IS NULL OR claimed_until <= now()))

-- name: due_tenants
-- The tenants that have a job that is due, by priority, in the order in which they are served: who was served longest ago is
-- next. By one pass over the turns, which to sort takes several times as long. Caller: the publisher, now and then.
-- Rows: (tenant, priority).
SELECT tenant, priority FROM (
    SELECT tenant, priority, max(max(served_at)) OVER (PARTITION BY tenant) AS served_at,
           min(job_id) FILTER (WHERE {is_due}) AS first_due
    FROM callboard.turns WHERE NOT over GROUP BY tenant, priority
) AS t
WHERE first_due IS NOT NULL ORDER BY priority, served_at NULLS FIRST, first_due LIMIT 200

-- name: claim_job
-- The next job that has something to publish in its turn, for as long as the lease lasts.
-- Guard: open, its time has come, neither paused nor being stopped, its limits leave something, and no publisher at work.
-- A job whose actor no living worker has stays where it is while some worker lives: it would look at each message, and
-- make a row of it again. With none alive messages wait on the broker, as deep as a queue may be.
-- The given tenants are served in their order, and of the jobs of a tenant the one that was served longest ago is next.
-- What a rate allows, gathered over a second at most, is used up by the claim.
-- `out` of a limited job is what was published and has not ended, without what is to be published once more, since it was
-- lost or came to a worker that lacks its actor: such an item would wait for the place that it holds itself.
-- A claim that lapsed was abandoned: its holder may have sent what lies up to a window beyond the watermark.
-- When none of the first turns can be served, they are looked at again after a pause, or once their job changes; but for
-- those whose job or turn another transaction has locked for a moment, as the record of outcomes does many times a second.
-- Caller: the publisher. Rows: PublishClaim. None: no such job.
-- Lock order: the job, then its turn; turns that can't be served; without waiting for any. What a trigger of the user's
-- waits for, it waits for LOCK_WAIT_SECONDS at most.
WITH {living}, waiting AS MATERIALIZED (
    -- In order, and read no further than to the first that can be served: the planner takes a limit that it does not know
    -- for one that is soon reached, and reads the index in its order.
    SELECT t.* FROM unnest(%(tenants)s::text[], %(priorities)s::int[]) AS n (tenant, priority) CROSS JOIN LATERAL (
        SELECT job_id, queue, target, seq, served_at FROM callboard.turns
        WHERE tenant = n.tenant AND priority = n.priority AND NOT over AND {is_due}
        ORDER BY served_at NULLS FIRST, job_id, queue LIMIT (SELECT 200)
    ) AS t LIMIT 200
), {next_job}, blocked AS (
    SELECT t.job_id, t.queue,
           CASE WHEN (SELECT rate FROM callboard.jobs AS j WHERE j.id = t.job_id) IS NULL THEN %(TURN_PAUSE_SECONDS)s::float8
                ELSE %(RATE_PAUSE_SECONDS)s::float8 END AS pause
    FROM waiting AS w JOIN callboard.turns AS t ON t.job_id = w.job_id AND t.queue = w.queue AND t.seq = w.seq
    WHERE NOT EXISTS (SELECT FROM next) AND NOT EXISTS ({servable} OFFSET 0)
    FOR UPDATE OF t SKIP LOCKED
), passed_over AS (
    UPDATE callboard.turns AS t
    SET bulk_at = greatest(t.bulk_at, now() + make_interval(secs => b.pause)), seq = t.seq + 1,
        due_at = CASE WHEN t.limited THEN greatest(t.due_at, now() + make_interval(secs => least(b.pause, %(DUE_PAUSE_SECONDS)s)))
                      ELSE t.due_at END
    FROM blocked AS b
    WHERE t.job_id = b.job_id AND t.queue = b.queue AND t.job_id = ANY (ARRAY(SELECT job_id FROM blocked))  -- by the index
), {claimed_job}

-- name: due_jobs
-- The jobs whose turn has come, first those that were served longest ago. Caller: the publisher, when a trigger of the user's
-- has refused `claim_job`: the job that it concerns stays among the first. Rows: (id), none twice.
SELECT job_id FROM callboard.turns WHERE NOT over AND {is_due}
GROUP BY job_id ORDER BY min(priority), min(served_at) NULLS FIRST, job_id LIMIT 50

-- name: claim_given_job
-- See `claim_job`: a given job, if it has something to publish in its turn, and whether or not that has come.
-- Caller: the publisher. Rows: PublishClaim. None: it can't be served. Lock order: the job, then its turn, without waiting.
WITH {living}, waiting AS MATERIALIZED (
    SELECT job_id, queue, target, seq, served_at FROM callboard.turns
    WHERE job_id = %(job)s AND NOT over AND NOT held AND {its_time_is} AND {has_room}
    ORDER BY served_at NULLS FIRST, queue
), {next_job}, {claimed_job}

-- part: living
-- The live workers.
living AS (
    SELECT actors, threads FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s)
)

-- part: is_due
-- Whether a turn is due, its queue is not full, and its job was not passed over.
NOT held AND (bulk_at < 'infinity' OR limited) AND (bulk_at <= now() OR limited AND due_at <= now()) AND {its_time_is}
AND {has_room} AND job_id <> ALL (%(passed)s::bigint[])

-- part: has_room
-- Whether the queue of a turn is not `full`. The planner's estimate of this condition does not depend on the parameter.
target NOT IN (SELECT unnest(%(full)s::text[]))

-- part: next_job
-- The first job of `waiting` that can be served.
next AS MATERIALIZED (
    -- In the order of `waiting`, and no further than to the first that can be served.
    SELECT w.queue, w.target, w.seq, w.served_at, j.*
    FROM waiting AS w CROSS JOIN LATERAL (
        {servable} OFFSET 0 FOR NO KEY UPDATE OF j SKIP LOCKED
    ) AS j CROSS JOIN LATERAL {unlocked_turn}
    LIMIT 1
)

-- part: unlocked_turn
-- The turn of the row `w`, locked; no row while another transaction has locked it.
(SELECT job_id, queue FROM callboard.turns AS t
 WHERE t.job_id = w.job_id AND t.queue = w.queue OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED) AS t

-- part: claimed_job
-- Claims the job `next`, and uses up its turn.
turned AS (
    UPDATE callboard.turns AS t
    SET served_at = clock_timestamp(), seq = t.seq + 1, bulk_at = now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s),
        due_at = CASE WHEN t.limited THEN now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s) ELSE t.due_at END
    FROM next AS n WHERE t.job_id = n.id AND t.queue = n.queue AND t.seq = n.seq
)
UPDATE callboard.jobs AS j
SET publish_token = j.publish_token + 1,
    publish_until = now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s),
    rate_ready = CASE WHEN j.rate IS NOT NULL THEN next.base + make_interval(secs => next.starts / j.rate) END,
    suspect_below = CASE WHEN next.abandoned THEN greatest(j.suspect_below, j.watermark + %(PUBLISH_WINDOW_ITEMS)s)
                         ELSE j.suspect_below END
FROM next, {lock_wait} WHERE j.id = next.id
RETURNING j.id, j.publish_token, j.watermark, j.suspect_below,
          CASE WHEN next.queue = '' THEN j.bulk_end ELSE j.watermark END, j.epoch, coalesce(j.actor, ''), next.target,
          j.in_turn, least(j.concurrency - next.out, next.starts), next.limited, j.chunk, next.served_at,
          j.lane_by, j.lane_width, j.lanes, j.applied_lane_by, next.queue, next.seq + 1,
          (SELECT mean_seconds FROM callboard.actors AS a WHERE a.name = j.actor),
          (SELECT coalesce(sum(threads), 0)::int FROM living WHERE j.actor = ANY (actors)), j.tenant, j.priority

-- part: servable
-- The job of the turn `w`, if it can be served. Rows: (id, limited, abandoned, out, base, starts).
-- `starts`: items that its rate allows since `base`; 1e-6 makes up for a float that falls just short of a whole number.
SELECT j.id, l.limited, j.publish_until IS NOT NULL AS abandoned, l.out, r.base,
       CASE WHEN j.rate IS NOT NULL THEN floor(extract(epoch FROM now() - r.base) * j.rate + 1e-6)::int END AS starts
FROM callboard.jobs AS j
CROSS JOIN LATERAL (
    SELECT {is_limited} AS limited,
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
WHERE j.id = w.job_id AND j.finished_at IS NULL AND j.stopping IS NULL AND j.state <> 'paused'
  AND (w.queue = '' AND j.watermark < j.bulk_end
       -- Down the index: an EXISTS may read all of the outbox for a job that it takes to have many messages.
       OR (SELECT o.id FROM callboard.outbox AS o
           WHERE o.job_id = w.job_id AND o.queue = w.queue AND o.claimed_until IS NULL AND o.due_at = 'infinity'
           ORDER BY o.item LIMIT 1) IS NOT NULL
       OR (SELECT o.id FROM callboard.outbox AS o
           WHERE o.job_id = w.job_id AND o.queue = w.queue AND o.claimed_until <= now()
             AND (o.due_at = 'infinity' OR l.limited AND o.due_at <= now())
           ORDER BY o.claimed_until LIMIT 1) IS NOT NULL
       OR l.limited AND (
           SELECT o.id FROM callboard.outbox AS o
           WHERE o.job_id = w.job_id AND o.queue = w.queue AND o.claimed_until IS NULL AND o.due_at <= now()
           ORDER BY o.due_at LIMIT 1) IS NOT NULL)
  AND (j.publish_until IS NULL OR j.publish_until < now())
  AND (j.actor IS NULL OR j.actor = 'callboard.ping'  -- which each worker has
       OR j.actor IN (SELECT unnest(actors) FROM living) OR NOT EXISTS (SELECT FROM living))
  AND (j.concurrency IS NULL OR l.out < j.concurrency)
  AND (j.rate IS NULL
       OR r.base <= now() - make_interval(secs => 1 / j.rate)
          AND l.out - (SELECT count(*) FROM callboard.running AS r WHERE r.job_id = j.id) < greatest(ceil(j.rate), 1))

-- name: claim_in_turn
-- Claim messages that are published in their job's turn (all messages of a limited job), until the lease expires.
-- Guard: unclaimed or abandoned (then it may have been published: suspect). Caller: the publisher, which holds the job's
-- claim. Rows: Outgoing.
WITH in_turn AS (
    SELECT o.id, o.job_id, o.item, false AS lapsed FROM callboard.outbox AS o
    WHERE o.job_id = %(job)s AND o.queue = %(turn)s AND o.claimed_until IS NULL AND o.due_at = 'infinity'
    ORDER BY o.item LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), timed AS (
    SELECT o.id, o.job_id, o.item, false AS lapsed FROM callboard.outbox AS o
    WHERE %(limited)s AND o.job_id = %(job)s AND o.queue = %(turn)s AND o.claimed_until IS NULL AND o.due_at <= now()
    ORDER BY o.due_at, o.item LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), abandoned AS (
    SELECT o.id, o.job_id, o.item, true AS lapsed FROM callboard.outbox AS o
    WHERE o.job_id = %(job)s AND o.queue = %(turn)s AND o.claimed_until <= now()
      AND (o.due_at = 'infinity' OR %(limited)s AND o.due_at <= now())
    ORDER BY o.claimed_until LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), due AS (
    SELECT * FROM (SELECT * FROM abandoned UNION ALL SELECT * FROM timed UNION ALL SELECT * FROM in_turn) AS o LIMIT %(limit)s
), {claimed}
{outgoing}
ORDER BY c.item

-- part: message_bytes
-- The bytes of the message of the item `i`: its arguments and its options.
(octet_length(i.args) + coalesce(octet_length(coalesce(i.retry_options, i.options)), 0))

-- part: claimed
-- Claims the outbox rows that `due` (id, job_id, item, lapsed) has locked, until the lease expires: about `bytes` of messages,
-- but at least one. A message that was claimed before becomes suspect.
sized AS (
    SELECT o.id, o.lapsed, sum(i.bytes) OVER (ORDER BY o.id) - i.bytes AS before
    FROM due AS o CROSS JOIN LATERAL (
        SELECT {message_bytes} AS bytes FROM callboard.items AS i WHERE i.job_id = o.job_id AND i.item = o.item OFFSET 0
    ) AS i
), claimed AS (
    UPDATE callboard.outbox AS o
    SET claimed_until = now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s), suspect = o.suspect OR sized.lapsed
    FROM sized WHERE o.id = sized.id AND sized.before < %(bytes)s
    RETURNING o.*
)

-- part: outgoing
-- The messages of `claimed`. Rows: Outgoing.
SELECT c.job_id, c.item, c.attempt, j.epoch, c.suspect, coalesce(i.actor, j.actor), coalesce(i.queue, j.queue),
       coalesce(i.message_uuid::text, i.message_id, c.job_id || '-' || c.item), i.args,
       coalesce(c.options, i.retry_options, i.options),
       coalesce(c.sent_ms, (extract(epoch FROM i.sent_at) * 1000)::bigint), c.id, c.dead,
       j.standing_on IS NOT NULL
FROM claimed AS c JOIN callboard.items AS i USING (job_id, item) JOIN callboard.jobs AS j ON j.id = c.job_id

-- name: bulk_items
-- The bulk items in a range of a job. Children stored in between are published by the outbox. Caller: the publisher.
-- Rows: (item, attempt, args, options), by item; about `bytes` of messages, but at least one.
SELECT item, attempt, args, options FROM (
    SELECT item, attempt, args, coalesce(retry_options, options) AS options,
           sum({message_bytes}) OVER (ORDER BY item) - {message_bytes} AS before
    FROM callboard.items AS i
    WHERE job_id = %(job)s AND item >= %(start)s AND item < %(end)s AND sent_at IS NULL
) AS i
WHERE before < %(bytes)s ORDER BY item

-- name: advance_watermark
-- A range of bulk items is confirmed. The watermark only moves forward.
-- Guard: the claim is still this publisher's (its token). Caller: the publisher. Rows: (go on); none: taken over, stop.
-- `keep` renews the claim while the job goes on; otherwise the claim is released, uncertain items beyond the watermark become
-- suspect, and the job's next turn is when it has something to publish: now, if something was added since the claim, but
-- not before a `pause`, or before one of its holds ends. `unserved`: nothing was published, so the job gets its turn back.
-- Lock order: the job, then its turn. Waits for a lock for LOCK_WAIT_SECONDS at most; after that the claim expires, and the
-- range is published again, as suspect.
WITH moved AS (
    UPDATE callboard.jobs
    SET watermark = greatest(watermark, %(watermark)s),
        published = published + %(published)s,
        suspect_below = greatest(suspect_below, %(suspect_below)s),
        publish_until = CASE WHEN %(keep)s AND stopping IS NULL AND state <> 'paused' AND {its_time_is}
                             THEN now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s) END,
        updated_at = CASE WHEN %(published)s > 0 THEN now() ELSE updated_at END
    FROM {lock_wait}
    WHERE id = %(job)s AND publish_token = %(token)s AND publish_until IS NOT NULL
    RETURNING id, stopping IS NULL AND state <> 'paused' AND {its_time_is} AS goes_on, watermark < bulk_end AS more, holds
), next AS (
    SELECT m.id,
           CASE WHEN m.more AND %(turn)s = '' OR (
                    SELECT o.id FROM callboard.outbox AS o
                    WHERE o.job_id = %(job)s AND o.queue = %(turn)s AND o.claimed_until IS NULL AND o.due_at = 'infinity'
                    ORDER BY o.item LIMIT 1) IS NOT NULL
                THEN now() ELSE coalesce((
                    SELECT o.claimed_until FROM callboard.outbox AS o
                    WHERE o.job_id = %(job)s AND o.queue = %(turn)s AND o.claimed_until IS NOT NULL AND o.due_at = 'infinity'
                    ORDER BY o.claimed_until LIMIT 1), 'infinity') END AS bulk_at,
           coalesce(least((
               SELECT o.due_at FROM callboard.outbox AS o
               WHERE o.job_id = %(job)s AND o.queue = %(turn)s AND o.claimed_until IS NULL AND o.due_at < 'infinity'
                 AND NOT o.dead ORDER BY o.due_at LIMIT 1), (
               SELECT o.claimed_until FROM callboard.outbox AS o
               WHERE o.job_id = %(job)s AND o.queue = %(turn)s AND o.claimed_until IS NOT NULL AND o.due_at < 'infinity'
                 AND NOT o.dead ORDER BY o.claimed_until LIMIT 1)), 'infinity') AS due_at,
           least(now() + make_interval(secs => %(pause)s), h.ends) AS earliest,
           least(now() + make_interval(secs => least(%(pause)s, %(DUE_PAUSE_SECONDS)s)), h.ends) AS due_earliest
    FROM moved AS m CROSS JOIN LATERAL (
        SELECT min((h.value ->> 'until')::timestamptz) AS ends FROM jsonb_each(m.holds) AS h
        WHERE (h.value ->> 'until')::timestamptz > now()
    ) AS h WHERE NOT %(keep)s
), turned AS (
    UPDATE callboard.turns AS t
    SET served_at = CASE WHEN %(unserved)s THEN %(served_at)s ELSE t.served_at END, seq = t.seq + 1,
        bulk_at = greatest(CASE WHEN t.seq = %(seq)s THEN n.bulk_at ELSE now() END, n.earliest),
        due_at = CASE WHEN NOT t.limited THEN t.due_at WHEN t.seq = %(seq)s THEN greatest(n.due_at, n.due_earliest)
                      ELSE n.due_earliest END
    FROM next AS n WHERE t.job_id = n.id AND t.queue = %(turn)s
)
SELECT goes_on FROM moved

-- part: is_limited
-- Whether the limits of the job `j` require that all of it is published in its turn.
(j.concurrency IS NOT NULL OR j.rate IS NOT NULL OR j.lane_by IS NOT NULL)

-- part: its_time_is
-- Whether items of a job may start now, by the times in its row or its turn. Soon after its deadline the sweep stops it.
(not_before IS NULL OR not_before <= now()) AND (deadline IS NULL OR deadline > now())

-- name: claim_outbox
-- Claim due messages of jobs without limits, until the lease expires: for each queue as many as it has room for, from many
-- jobs the same number each. Tenants are served in turn, and so are the jobs of a tenant.
-- Guard: due, unclaimed or abandoned (then it may have been published: suspect); its job is open, may start now, and is
-- neither paused nor being stopped nor limited (see claim_in_turn). Dead letters are published in any state of the job; for
-- queues that are not given, and for the jobs `passed`, only dead letters.
-- Caller: the publisher. Rows: Outgoing. Lock order: rows of the outbox, then turns, without waiting for any.
WITH placed AS (
    SELECT t.*, max(t.served_at) OVER (PARTITION BY t.tenant) AS tenant_served_at,
           row_number() OVER (PARTITION BY t.tenant, t.target, t.priority ORDER BY t.served_at NULLS FIRST, t.job_id) AS place
    FROM callboard.turns AS t
    WHERE NOT t.held AND NOT t.over AND NOT t.limited AND t.due_at <= now() AND {its_time_is}
      AND t.target = ANY (%(queue)s::text[]) AND t.job_id <> ALL (%(passed)s::bigint[])
), picked AS MATERIALIZED (
    SELECT job_id, queue, seq,
           ceil((SELECT r.room FROM unnest(%(queue)s::text[], %(room)s::int[]) AS r (queue, room) WHERE r.queue = target)::float8
                / count(*) OVER (PARTITION BY target))::int AS share
    FROM (
        SELECT *, row_number() OVER (
            PARTITION BY target ORDER BY priority, place, tenant_served_at NULLS FIRST, served_at NULLS FIRST, job_id) AS nth
        FROM placed WHERE place <= 50  -- 50 others come before the rest, which need not be sorted
    ) AS p WHERE nth <= 50
), timed AS MATERIALIZED (
    SELECT o.*, false AS lapsed FROM picked AS p CROSS JOIN LATERAL (
        SELECT o.id, o.job_id, o.item, o.queue FROM callboard.outbox AS o
        WHERE o.job_id = p.job_id AND o.queue = p.queue AND o.claimed_until IS NULL AND o.due_at <= now() AND NOT o.dead
        ORDER BY o.due_at, o.item LIMIT p.share FOR UPDATE SKIP LOCKED
    ) AS o
), abandoned AS MATERIALIZED (
    SELECT o.*, true AS lapsed FROM picked AS p CROSS JOIN LATERAL (
        SELECT o.id, o.job_id, o.item, o.queue FROM callboard.outbox AS o
        WHERE o.job_id = p.job_id AND o.queue = p.queue AND o.claimed_until <= now() AND o.due_at <= now() AND NOT o.dead
        ORDER BY o.claimed_until LIMIT p.share FOR UPDATE SKIP LOCKED
    ) AS o
), dead AS MATERIALIZED (
    SELECT o.id, o.job_id, o.item, o.queue, o.claimed_until IS NOT NULL AS lapsed FROM callboard.outbox AS o
    WHERE o.dead AND o.due_at <= now() AND (o.claimed_until IS NULL OR o.claimed_until <= now())
    ORDER BY o.due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), due AS MATERIALIZED (
    SELECT * FROM (SELECT * FROM dead UNION ALL SELECT * FROM abandoned UNION ALL SELECT * FROM timed) AS o LIMIT %(limit)s
), {claimed}, seen AS (
    SELECT t.job_id, t.queue, p.share, (SELECT count(*) FROM due AS d WHERE d.job_id = p.job_id AND d.queue = p.queue) AS taken
    FROM picked AS p JOIN callboard.turns AS t ON t.job_id = p.job_id AND t.queue = p.queue AND t.seq = p.seq
    FOR UPDATE OF t SKIP LOCKED
), turned AS (
    UPDATE callboard.turns AS t
    SET seq = t.seq + 1, served_at = CASE WHEN s.taken > 0 THEN clock_timestamp() ELSE t.served_at END,
        due_at = CASE WHEN s.taken >= least(s.share, %(limit)s) OR (SELECT count(*) FROM due) >= %(limit)s
                           OR (SELECT count(*) FROM claimed) < (SELECT count(*) FROM due) THEN now()
            ELSE coalesce(least((
                SELECT o.due_at FROM callboard.outbox AS o
                WHERE o.job_id = s.job_id AND o.queue = s.queue AND o.claimed_until IS NULL
                  AND o.due_at > CASE WHEN s.taken > 0 THEN now() ELSE '-infinity' END
                  AND o.due_at < 'infinity' AND NOT o.dead ORDER BY o.due_at LIMIT 1), (
                SELECT o.claimed_until FROM callboard.outbox AS o
                WHERE o.job_id = s.job_id AND o.queue = s.queue AND o.claimed_until IS NOT NULL AND o.due_at < 'infinity'
                  AND NOT o.dead ORDER BY o.claimed_until LIMIT 1),
                CASE WHEN s.taken > 0 THEN now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s) END), 'infinity') END
    FROM seen AS s WHERE t.job_id = s.job_id AND t.queue = s.queue
)
{outgoing}
ORDER BY c.due_at

-- name: renew_outbox
-- Renew the claims of messages, because the broker confirms slowly.
-- Guard: the row is still claimed, for the attempt that was sent; an expired claim may now be another publisher's.
-- Caller: the publisher. Lock order: rows of the outbox, without waiting for any: the claim of a locked row expires.
WITH held AS (
    SELECT o.id FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt)
    JOIN callboard.outbox AS o ON o.id = s.id AND o.attempt = s.attempt AND o.claimed_until > now()
    FOR UPDATE OF o SKIP LOCKED
)
UPDATE callboard.outbox AS o SET claimed_until = now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s)
FROM held AS h WHERE o.id = h.id

-- name: confirm_outbox
-- These messages are confirmed: delete their rows. Transition: retrying -> waiting; a first message counts as published, and
-- a message of the job's turn no longer counts as waiting for it.
-- Guard: the outbox row still has the attempt that was sent. A row that was rewritten meanwhile, for the retry of an attempt
-- that has already failed, or as its dead letter, stays, and counts as published now; a row that is being rewritten keeps
-- its `first`, and counts with its next message.
-- A dead letter that was already counted changes no counter, so its job's row, which flushes lock often, is not locked.
-- The guard of `deleted` is a CASE, so that the planner uses no index for it: the index of claimed rows would compare all of
-- them with each message. It needs no earlier lock: the DELETE checks it again in a row that changed meanwhile.
-- Caller: the publisher. Lock order: items by key, their outbox rows, then jobs by id. Waits for a lock for
-- LOCK_WAIT_SECONDS at most.
WITH sent AS (
    SELECT id, max(attempt) AS attempt FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt), {lock_wait} GROUP BY id
), held AS (
    SELECT o.id, s.attempt, i.attempt = s.attempt AND i.state = 'retrying' AS waits
    FROM sent AS s JOIN callboard.outbox AS o ON o.id = s.id
    JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
), deleted AS (
    DELETE FROM callboard.outbox AS o USING held AS h
    WHERE o.id = h.id AND CASE WHEN o.claimed_until IS NOT NULL THEN o.attempt END = h.attempt
    RETURNING o.job_id, o.item, o.first, o.in_turn, o.dead, h.waits
), kept AS (
    SELECT o.* FROM held AS h CROSS JOIN LATERAL (
        SELECT o.id, o.job_id, o.first, o.in_turn FROM callboard.outbox AS o
        WHERE o.id = h.id AND (o.first OR o.in_turn) AND (o.attempt <> h.attempt OR o.claimed_until IS NULL) OFFSET 0 FOR UPDATE
    ) AS o
), counted AS (
    UPDATE callboard.outbox AS o SET first = false, in_turn = false FROM kept AS k WHERE o.id = k.id
), moved AS (
    UPDATE callboard.items AS i SET state = 'waiting'
    FROM deleted AS g WHERE i.job_id = g.job_id AND i.item = g.item AND g.waits
    RETURNING i.job_id
), delta AS (
    SELECT job_id, sum(published) AS published, sum(retrying) AS retrying, sum(in_turn) AS in_turn
    FROM (
        SELECT job_id, count(*) FILTER (WHERE first) AS published, 0 AS retrying, count(*) FILTER (WHERE in_turn) AS in_turn
        FROM (SELECT job_id, first, in_turn FROM deleted WHERE first OR in_turn OR NOT dead
              UNION ALL SELECT job_id, first, in_turn FROM kept) AS o GROUP BY job_id
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
-- Release the claims of messages that were not published, or may have been; the next publisher that claims them publishes
-- them as suspect. Refused messages are due only after a `pause`, behind all others: otherwise they would always be first.
-- Guard: the row is still claimed, for the attempt that was to be sent; otherwise it belongs to a retry, or is parked.
-- Caller: the publisher. Lock order: rows of the outbox, then their turns, without waiting for any: the claims of locked
-- rows expire.
WITH unsent AS MATERIALIZED (
    SELECT o.id, o.job_id, o.queue, o.dead, o.attempt = s.attempt AND o.claimed_until IS NOT NULL AS claimed
    FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt) JOIN callboard.outbox AS o ON o.id = s.id
    FOR UPDATE OF o SKIP LOCKED
), turn AS MATERIALIZED (
    -- The update of a message changes its turn, unless it is a dead letter.
    SELECT t.* FROM (SELECT DISTINCT job_id, queue FROM unsent WHERE NOT dead) AS w CROSS JOIN LATERAL {unlocked_turn}
)
UPDATE callboard.outbox AS o
SET claimed_until = now(),
    due_at = CASE WHEN %(pause)s > 0 AND o.due_at < 'infinity' THEN now() + make_interval(secs => %(pause)s)
                  ELSE o.due_at END
FROM unsent AS u
WHERE o.id = u.id AND u.claimed AND (u.dead OR (u.job_id, u.queue) IN (SELECT job_id, queue FROM turn))  -- hashed
