-- name: renew_claim
-- Renew a publisher's claim of a job.
-- Guard: the claim is still this publisher's (its token), the job open, neither paused nor being stopped.
-- Caller: the publisher, while it waits for the broker, and in each transaction that only the holder of the claim may
-- commit. Rows: (id); none: roll back. Waits for a lock for LOCK_WAIT_SECONDS at most.
UPDATE callboard.jobs SET publish_until = now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s) FROM {lock_wait}
WHERE id = %(job)s AND publish_token = %(token)s AND publish_until IS NOT NULL
  AND finished_at IS NULL AND stopping IS NULL AND state <> 'paused'
RETURNING id

-- name: move_to_outbox
-- Move a range of bulk items to the outbox, each with its lane, to be published in the job's turn. The watermark moves over
-- the range; the claim is renewed.
-- Guard: the claim is still this publisher's (its token), the job neither paused nor being stopped; an item waits and
-- has no message in the outbox. Caller: the publisher. Rows: (items moved); none: roll back.
-- Lock order: items by key, rows of the outbox, then the job: see republish, also for OFFSET 0.
WITH aside AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect, in_turn, lane)
    SELECT i.job_id, i.item, i.attempt, 'infinity', false, i.item < %(suspect_below)s, true, a.lane
    FROM (SELECT * FROM unnest(%(item)s::int[], %(lane)s::text[]) AS a (item, lane) ORDER BY item) AS a
    CROSS JOIN LATERAL (
        SELECT job_id, item, attempt, state FROM callboard.items AS i
        WHERE i.job_id = %(job)s AND i.item = a.item OFFSET 0 FOR NO KEY UPDATE
    ) AS i
    WHERE i.state = 'waiting'
    ON CONFLICT (job_id, item) DO NOTHING
    RETURNING item
), counted AS (
    SELECT count(*) AS aside FROM aside
)
UPDATE callboard.jobs AS j
SET watermark = %(watermark)s, published = j.published + cardinality(%(item)s::int[]), in_turn = j.in_turn + counted.aside,
    publish_until = now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s)
FROM counted
WHERE j.id = %(job)s AND j.publish_token = %(token)s AND j.publish_until IS NOT NULL AND j.watermark = %(start)s
  AND j.stopping IS NULL AND j.state <> 'paused'
RETURNING counted.aside

-- name: messages_without_lane
-- Messages of a job that could be published in its turn and have no lane yet: retries, parked and lost messages, children.
-- Caller: the publisher, which holds the job's claim. Rows: (outbox id, args); about `bytes` of arguments, but at least one
-- row. OFFSET 0: else each message may be compared with all items, if the outbox was empty when it was analyzed.
SELECT id, args FROM (
SELECT due.id, i.args, sum(octet_length(i.args)) OVER (ORDER BY due.id) - octet_length(i.args) AS before
FROM (
    (SELECT o.id FROM callboard.outbox AS o WHERE o.job_id = %(job)s AND o.in_turn AND o.lane IS NULL LIMIT %(limit)s)
    UNION
    (SELECT o.id FROM callboard.turns AS t CROSS JOIN LATERAL (
         SELECT o.id FROM callboard.outbox AS o
         WHERE o.job_id = t.job_id AND o.queue = t.queue AND o.claimed_until IS NULL AND o.due_at <= now()
           AND o.lane IS NULL AND NOT o.dead LIMIT %(limit)s) AS o
     WHERE t.job_id = %(job)s)
    UNION
    (SELECT o.id FROM callboard.turns AS t CROSS JOIN LATERAL (
         SELECT o.id FROM callboard.outbox AS o
         WHERE o.job_id = t.job_id AND o.queue = t.queue AND o.claimed_until <= now()
           AND o.lane IS NULL AND NOT o.dead LIMIT %(limit)s) AS o
     WHERE t.job_id = %(job)s)
) AS due
CROSS JOIN LATERAL (SELECT o.job_id, o.item FROM callboard.outbox AS o WHERE o.id = due.id OFFSET 0) AS o
CROSS JOIN LATERAL (SELECT args FROM callboard.items AS i WHERE i.job_id = o.job_id AND i.item = o.item OFFSET 0) AS i
) AS o
WHERE before < %(bytes)s

-- name: set_lanes
-- Set the lanes of messages in the outbox. Caller: the publisher, which holds the job's claim, and its lock. A message that
-- was settled or rewritten meanwhile has another id, or none; a later call sets the lane of a locked one.
-- Lock order: the job, then rows of the outbox without waiting for any.
WITH known AS (
    SELECT o.id, t.lane FROM callboard.outbox AS o
    JOIN unnest(%(id)s::bigint[], %(lane)s::text[]) AS t (id, lane) ON t.id = o.id
    FOR UPDATE OF o SKIP LOCKED
)
UPDATE callboard.outbox AS o SET lane = known.lane FROM known WHERE o.id = known.id

-- name: items_in_flight
-- The items in flight of a job's lanes. Caller: the publisher, which holds the job's claim. Rows: (item, args), by item;
-- about `bytes` of arguments, but at least one row.
SELECT item, args FROM (
    SELECT l.item, i.args, sum(octet_length(i.args)) OVER (ORDER BY l.item) - octet_length(i.args) AS before
    FROM callboard.lanes AS l
    CROSS JOIN LATERAL (SELECT args FROM callboard.items AS i WHERE i.job_id = l.job_id AND i.item = l.item OFFSET 0) AS i
    WHERE l.job_id = %(job)s AND l.item > %(after)s
) AS i
WHERE before < %(bytes)s ORDER BY item

-- name: count_in_flight
-- How many items of a job's lanes are in flight. Caller: the publisher, which holds the job's claim. Rows: one.
SELECT count(*) FROM callboard.lanes WHERE job_id = %(job)s

-- name: clear_message_lanes
-- Another argument decides the lanes now: clear the lanes of a job's messages.
-- Caller: the publisher, which holds the job's claim. Lock order: items by key, then their outbox rows: see republish, also
-- for OFFSET 0.
WITH held AS (
    SELECT i.job_id, i.item
    FROM (SELECT item FROM callboard.outbox WHERE job_id = %(job)s AND lane IS NOT NULL ORDER BY item) AS o
    CROSS JOIN LATERAL (
        SELECT job_id, item FROM callboard.items AS i
        WHERE i.job_id = %(job)s AND i.item = o.item OFFSET 0 FOR NO KEY UPDATE
    ) AS i
)
UPDATE callboard.outbox AS o SET lane = NULL FROM held WHERE o.job_id = held.job_id AND o.item = held.item

-- name: change_lanes
-- Set the lanes of items in flight by the argument that now decides the lanes. Holds of the old lanes are removed.
-- Caller: the publisher, which holds the job's claim, and its lock. Lock order: the job, then lanes, for which only the
-- holder of the claim waits.
WITH known AS MATERIALIZED (
    SELECT %(job)s::bigint AS job_id, t.* FROM unnest(%(item)s::int[], %(lane)s::text[]) AS t (item, lane)
), changed AS (
    UPDATE callboard.lanes AS l SET lane = t.lane FROM known AS t WHERE l.job_id = t.job_id AND l.item = t.item
    RETURNING l.item
)
UPDATE callboard.jobs AS j
SET applied_lane_by = %(by)s, holds = jsonb_strip_nulls(jsonb_build_object('*', j.holds -> '*')),
    control_at = CASE WHEN j.holds IS NULL THEN j.control_at ELSE clock_timestamp() END
FROM (SELECT count(*) FROM changed) AS after_changed WHERE j.id = %(job)s

-- name: free_lanes
-- Remove items from their lanes that ended, or wait in the outbox again (a retry, parked, or lost).
-- Messages that a publisher has claimed are still in flight, even if the claim expired: they may have been sent.
-- Caller: the publisher, which holds the job's claim, and its lock. Lock order: the job, then lanes.
DELETE FROM callboard.lanes AS l
WHERE l.job_id = %(job)s
  AND ((SELECT finished_at IS NOT NULL FROM callboard.items AS i WHERE i.job_id = l.job_id AND i.item = l.item)
       OR EXISTS (SELECT FROM callboard.outbox AS o
                  WHERE o.job_id = l.job_id AND o.item = l.item AND o.claimed_until IS NULL OFFSET 0))

-- name: claim_lanes
-- Claim messages of a job whose lanes have room, by item, until the lease expires; they are in flight now.
-- Guard: unclaimed, or abandoned by a publisher (then it may have been published: suspect, and already in its lane).
-- Caller: the publisher, which holds the job's claim, and its lock. Rows: Outgoing.
-- Lock order: the job, then rows of the outbox without waiting for any, then lanes, which only the holder of the claim
-- locks.
WITH RECURSIVE lane AS (
    -- Each lane with a waiting message, found by one index step per lane.
    (SELECT o.lane AS name FROM callboard.outbox AS o
     WHERE o.job_id = %(job)s AND o.lane IS NOT NULL ORDER BY o.lane LIMIT 1)
    UNION ALL
    SELECT (SELECT o.lane FROM callboard.outbox AS o
            WHERE o.job_id = %(job)s AND o.lane > lane.name ORDER BY o.lane LIMIT 1)
    FROM lane WHERE lane.name IS NOT NULL
), used AS (
    SELECT name, sum(items) AS items
    FROM (SELECT name, 0 AS items FROM lane WHERE name IS NOT NULL
          UNION ALL SELECT l.lane, 1 FROM callboard.lanes AS l WHERE l.job_id = %(job)s) AS part
    GROUP BY name
), next AS (
    -- The lanes with items in flight, and as many other lanes as allowed, by the first waiting item of each. Lanes that are
    -- held back are left out.
    SELECT name, items FROM (
        SELECT used.*, h.held, row_number() OVER (ORDER BY used.items = 0, h.held, o.item) AS place
        FROM used
        CROSS JOIN (SELECT holds FROM callboard.jobs WHERE id = %(job)s) AS j
        CROSS JOIN LATERAL (
            SELECT coalesce((j.holds -> used.name ->> 'until')::timestamptz > now(), false) AS held
        ) AS h
        LEFT JOIN LATERAL (
            SELECT o.item FROM callboard.outbox AS o
            WHERE %(lanes)s::int IS NOT NULL AND used.items = 0 AND o.job_id = %(job)s AND o.lane = used.name AND NOT o.dead
              AND (o.in_turn AND o.due_at = 'infinity' OR o.due_at <= now())
              AND (o.claimed_until IS NULL OR o.claimed_until <= now())
            ORDER BY o.item LIMIT 1
        ) AS o ON true
    ) AS placed
    WHERE NOT held AND (items > 0 OR %(lanes)s::int IS NULL OR place <= %(lanes)s::int)
), free AS (
    SELECT o.id, o.item FROM next AS used
    CROSS JOIN LATERAL (
        SELECT o.id, o.item FROM callboard.outbox AS o
        WHERE o.job_id = %(job)s AND o.lane = used.name AND NOT o.dead
          AND (o.in_turn AND o.due_at = 'infinity' OR o.due_at <= now())
          AND (o.claimed_until IS NULL OR o.claimed_until <= now())
          AND NOT EXISTS (SELECT FROM callboard.lanes AS l WHERE l.job_id = o.job_id AND l.item = o.item OFFSET 0)
        ORDER BY o.item LIMIT greatest(%(width)s - used.items, 0)
    ) AS o
    UNION ALL
    SELECT o.id, l.item FROM callboard.lanes AS l
    CROSS JOIN LATERAL (
        SELECT o.id FROM callboard.outbox AS o
        WHERE o.job_id = l.job_id AND o.item = l.item AND o.claimed_until <= now() AND NOT o.dead OFFSET 0
    ) AS o
    WHERE l.job_id = %(job)s
), due AS (
    SELECT free.id, %(job)s::bigint AS job_id, free.item, o.lapsed FROM (SELECT * FROM free ORDER BY item) AS free
    CROSS JOIN LATERAL (
        SELECT o.claimed_until IS NOT NULL AS lapsed FROM callboard.outbox AS o
        -- Checked again, because these rows are read as they are after the lock.
        WHERE o.id = free.id AND NOT o.dead AND (o.in_turn AND o.due_at = 'infinity' OR o.due_at <= now())
          AND (o.claimed_until IS NULL OR o.claimed_until <= now()) OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS o
    LIMIT %(limit)s
), {claimed}, entered AS (
    INSERT INTO callboard.lanes (job_id, item, lane) SELECT c.job_id, c.item, coalesce(c.lane, '') FROM claimed AS c
    ON CONFLICT DO NOTHING
)
{outgoing}
ORDER BY c.item

-- name: hold
-- Hold back the lane of an item for a while, or its job if that has no lanes. Guard: open, and not being stopped. The item
-- may have ended and left its lane: `lanes` has its lane by each of its arguments.
-- Holds that are over are removed. Workers read the hold, and park messages of the lane that RabbitMQ already delivered.
-- Caller: a worker whose actor calls callboard.hold. Rows: JobControl. Lock order: the job, then its turns. Waits for a lock
-- for LOCK_WAIT_SECONDS at most.
WITH asked AS (
    SELECT coalesce((SELECT lane FROM callboard.lanes AS l WHERE l.job_id = %(job)s AND l.item = %(item)s),
                    CASE WHEN applied_lane_by <> '' THEN coalesce(%(lanes)s::jsonb ->> applied_lane_by, '') END, '*') AS lane,
           now() + make_interval(secs => %(seconds)s) AS until
    FROM callboard.jobs WHERE id = %(job)s
)
UPDATE callboard.jobs AS j
SET not_before = CASE WHEN asked.lane = '*' THEN greatest(j.not_before, asked.until) ELSE j.not_before END,
    holds = (SELECT coalesce(jsonb_object_agg(h.key, h.value), '{}') FROM jsonb_each(j.holds) AS h
             WHERE (h.value ->> 'until')::timestamptz > now())
            || jsonb_build_object(asked.lane, jsonb_build_object(
                'until', greatest(asked.until, (j.holds -> asked.lane ->> 'until')::timestamptz), 'reason', %(reason)s::text)),
    control_at = clock_timestamp(), updated_at = now()
FROM asked, {lock_wait} WHERE j.id = %(job)s AND j.finished_at IS NULL AND j.stopping IS NULL
RETURNING {control}
