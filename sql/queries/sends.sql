-- name: standing_job
-- The standing job of an actor's plain sends for today (UTC), created if it does not exist.
-- Caller: the store of sends. Rows: one, (id).
WITH made AS (
    INSERT INTO callboard.jobs (name, actor, queue, standing_on)
    VALUES (%(actor)s::text, %(actor)s, %(queue)s, (now() AT TIME ZONE 'UTC')::date)
    ON CONFLICT (actor, standing_on) WHERE standing_on IS NOT NULL AND NOT sealed DO NOTHING
    RETURNING id
)
SELECT id FROM made
UNION ALL
SELECT id FROM callboard.jobs
WHERE actor = %(actor)s AND standing_on = (now() AT TIME ZONE 'UTC')::date AND NOT sealed
LIMIT 1

-- name: lock_for_keys
-- Lock jobs that are about to get items with keys, and the open standing jobs of their actors: around midnight (UTC) two
-- processes may add to two standing jobs, and the second process must see the items of the first.
-- Caller: the store of sends, for messages of producers without Callboard. Rows: none. Lock order: jobs by id.
-- Waits for a lock for SEND_LOCK_WAIT_SECONDS at most.
SELECT FROM callboard.jobs AS j, {send_lock_wait}
WHERE j.id IN (
    SELECT unnest(%(jobs)s::bigint[])
    UNION ALL
    SELECT id FROM callboard.jobs WHERE actor = ANY (%(actors)s) AND standing_on IS NOT NULL AND NOT sealed
)
ORDER BY j.id FOR NO KEY UPDATE OF j

-- name: items_by_key
-- The messages of producers without Callboard that a standing job of the last days, or an open one, already has as items;
-- read under the locks of lock_for_keys. `job`: the job in which each would be stored. An item of another job counts only
-- if it has not ended long ago, or the message is `redelivered`: otherwise the message was sent again, to run again.
-- Caller: the store of sends. Rows: (actor, item_key, job_id, item).
SELECT DISTINCT ON (k.actor, k.item_key) k.actor, k.item_key, i.job_id, i.item
FROM unnest(%(actor)s::text[], %(key)s::text[], %(job)s::bigint[], %(redelivered)s::bool[]) AS k (actor, item_key, job, redelivered)
JOIN callboard.jobs AS j ON j.actor = k.actor
    AND j.standing_on IS NOT NULL AND (j.standing_on >= (now() AT TIME ZONE 'UTC')::date - 7 OR j.finished_at IS NULL)
JOIN callboard.items AS i ON i.job_id = j.id AND i.item_key = k.item_key
WHERE k.redelivered OR j.id = k.job OR i.finished_at IS NULL OR i.finished_at > now() - interval '1 hour'
ORDER BY k.actor, k.item_key, i.job_id DESC

-- name: add_items
-- Store plain sends and messages of producers without Callboard, in one statement and so in one transaction. They are
-- numbered from the total of their job, under the job's lock.
-- Transition: none -> waiting. A send that its process publishes gets a lease of its job, an existing or a new one, and
-- counts as published. Others get a row in the outbox, unless their message is already published: sends that wait for
-- their time, or for the turn of their job (see claim_outbox).
-- Guard: the job is neither over nor being stopped nor of stages; it may be sealed only for sends of its own items
-- (`child`). The index refuses a key that the job already has: the caller searches for it under the lock of the job.
-- A lease that is being ended is not used.
-- Caller: the store of sends. Rows: (nth, item, lease; NULL: its process does not publish it) of the stored items.
-- Lock order: jobs by id, then leases without waiting for any. Waits for a lock for SEND_LOCK_WAIT_SECONDS at most.
WITH new AS (
    SELECT n.*, (%(child)s::bool[])[n.nth] AS child
    FROM {NewItem} AS n, {send_lock_wait}
), locked AS (
    SELECT j.id, j.actor, j.queue, j.total, j.published, j.sealed,
           {takes_sends} AS takes, %(publishing)s AND {goes_at_once} AS goes
    FROM callboard.jobs AS j WHERE j.id IN (SELECT job FROM new) ORDER BY j.id FOR NO KEY UPDATE OF j
), taken AS (
    SELECT n.*, nullif(n.actor, l.actor) AS its_actor, nullif(n.queue, l.queue) AS its_queue,
           l.goes AND n.delay = 0 AND n.published IS NOT TRUE AS goes,
           l.total + row_number() OVER (PARTITION BY n.job ORDER BY n.nth) - 1 AS item
    FROM new AS n JOIN locked AS l ON l.id = n.job WHERE l.takes AND (n.child OR NOT l.sealed)
), held AS (
    SELECT id, job_id FROM callboard.send_leases WHERE id = ANY (%(leases)s::int[]) FOR KEY SHARE SKIP LOCKED
), opened AS (
    INSERT INTO callboard.send_leases (job_id, first_item, ends_at)
    SELECT job, min(item), now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s) FROM taken
    WHERE goes AND job NOT IN (SELECT job_id FROM held) GROUP BY job
    RETURNING id, job_id
), placed AS (
    SELECT t.*, CASE WHEN t.goes THEN l.id END AS lease
    FROM taken AS t LEFT JOIN (SELECT * FROM held UNION ALL SELECT * FROM opened) AS l ON l.job_id = t.job
), stored AS (
    INSERT INTO callboard.items (job_id, item, actor, queue, message_uuid, message_id, args, options, sent_at, item_key, lease)
    SELECT job, item, its_actor, its_queue, {message_ids}, args, options, to_timestamp(sent_ms / 1000.0), key, lease FROM placed
), grown AS (
    UPDATE callboard.jobs AS j
    SET total = l.total + t.items, published = l.published + t.published, updated_at = now()
    FROM locked AS l JOIN (
        SELECT job, count(*) AS items, count(*) FILTER (WHERE published OR goes) AS published FROM taken GROUP BY 1
    ) AS t ON t.job = l.id
    WHERE j.id = l.id
), queued AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, first)
    SELECT job, item, 1, coalesce(its_queue, ''), now() + make_interval(secs => delay), true FROM taken WHERE published IS NOT TRUE AND NOT goes
)
SELECT nth, item, lease FROM placed

-- name: add_item
-- Store one plain send that its process publishes, under an existing lease: the case of a program that sends one message
-- after the other. The effect is that of `add_items`, in half of the time.
-- Transition: none -> waiting, which counts as published. Guard: as in add_items, and items of the job need not wait for
-- their turn or time. A lease that is being ended is not used.
-- Caller: the store of sends. Rows: one, (item). None: add_items must handle it.
-- Lock order: the job, then the lease without waiting for it. Waits for a lock for SEND_LOCK_WAIT_SECONDS at most.
WITH locked AS (
    SELECT j.id
    FROM callboard.jobs AS j, {send_lock_wait}
    WHERE j.id = %(job)s AND {takes_sends} AND (%(child)s OR NOT j.sealed) AND {goes_at_once} FOR NO KEY UPDATE OF j
), held AS (
    SELECT s.id FROM locked AS l JOIN callboard.send_leases AS s ON s.job_id = l.id
    WHERE s.id = %(lease)s FOR KEY SHARE OF s SKIP LOCKED
), grown AS (
    UPDATE callboard.jobs AS j SET total = j.total + 1, published = j.published + 1, updated_at = now()
    FROM held WHERE j.id = %(job)s
    RETURNING j.id, j.actor, j.queue, j.total - 1 AS item, held.id AS lease, %(message_id)s::text AS message_id
)
INSERT INTO callboard.items (job_id, item, actor, queue, message_uuid, message_id, args, options, sent_at, item_key, lease)
SELECT id, item, nullif(%(actor)s, actor), nullif(%(queue)s, queue), {message_ids}, %(args)b, %(options)b, to_timestamp(%(sent_ms)s / 1000.0), %(key)s, lease
FROM grown
RETURNING item

-- part: send_lock_wait
-- Like `lock_wait`, for SEND_LOCK_WAIT_SECONDS.
(SELECT set_config('lock_timeout', concat(%(SEND_LOCK_WAIT_SECONDS)s::float8 * 1000, 'ms'), true)) AS lock_wait

-- part: message_ids
-- The columns message_uuid and message_id of an item whose message has the id `message_id`.
callboard.uuid_of(message_id), CASE WHEN callboard.uuid_of(message_id) IS NULL THEN message_id END

-- part: takes_sends
-- Whether the job `j` takes plain sends, if it is not sealed.
j.finished_at IS NULL AND j.stopping IS NULL AND j.stages IS NULL

-- part: goes_at_once
-- Whether a plain send into the job `j` is published at once, not in the job's turn.
j.state <> 'paused' AND NOT {is_limited} AND {its_time_is}

-- name: renew_send_leases
-- Renew leases, because the broker confirms their sends slowly. Guard: they have not expired.
-- Caller: the publisher. Rows: (id) of the renewed ones. Lock order: leases, without waiting for any.
UPDATE callboard.send_leases AS l SET ends_at = now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s)
FROM (SELECT id FROM callboard.send_leases WHERE id = ANY (%(leases)s) AND ends_at > now() FOR NO KEY UPDATE SKIP LOCKED) AS h
WHERE l.id = h.id
RETURNING l.id

-- name: end_send_leases
-- End leases: all of their sends are published, or have a row in the outbox. Guard: they are not locked.
-- Caller: the publisher. Rows: (id) of the locked ones, which stay. Lock order: leases, without waiting for any.
WITH ended AS (
    DELETE FROM callboard.send_leases
    WHERE id IN (SELECT id FROM callboard.send_leases WHERE id = ANY (%(leases)s) FOR UPDATE SKIP LOCKED)
    RETURNING id
)
SELECT id FROM callboard.send_leases WHERE id = ANY (%(leases)s) AND id NOT IN (SELECT id FROM ended)

-- name: lapsed_send_leases
-- Expired leases, whose processes died, in random order, so that those of locked jobs do not delay others.
-- Caller: the sweep. Rows: (job, leases).
SELECT job_id, array_agg(id) FROM callboard.send_leases WHERE ends_at <= now()
GROUP BY job_id ORDER BY random() LIMIT %(limit)s

-- name: end_lapsed_send_leases
-- End expired leases; `queue_sends` puts their sends into the outbox in the same transaction. A transaction that stores a
-- send under a lease has locked the lease, so all sends of the ended leases are committed.
-- Guard: they have expired, and no transaction has locked them. Caller: the sweep. Rows: one, (leases, the least first item;
-- NULL: none). After this statement, the transaction uses only index scans.
WITH ended AS (
    DELETE FROM callboard.send_leases
    WHERE id IN (SELECT id FROM callboard.send_leases WHERE id = ANY (%(leases)s) AND ends_at <= now() FOR UPDATE SKIP LOCKED)
    RETURNING id, first_item
)
SELECT array_agg(id), min(first_item) FROM ended, (SELECT set_config('enable_seqscan', 'off', true)) AS by_index

-- name: queue_sends
-- Put sends that were stored under one of these leases into the outbox, from ranges of items, `low` to below `high`: their
-- process could not publish them, or died. They no longer count as published.
-- `tried`: they may have been published, so they are suspect. `pause`: the seconds after which they are due.
-- Guard: the item waits for its first attempt, and has no row in the outbox.
-- Caller: the publisher; the sweep. Lock order: items by key, their outbox rows, then jobs by id. The transaction waits only
-- briefly for a lock.
WITH held AS (
    SELECT i.* FROM unnest(%(job)s::bigint[], %(low)s::bigint[], %(high)s::bigint[]) AS s (job_id, low, high)
    CROSS JOIN LATERAL (
        SELECT i.job_id, i.item, i.attempt, i.queue FROM callboard.items AS i
        WHERE i.job_id = s.job_id AND i.item >= s.low AND i.item < s.high AND i.lease = ANY (%(leases)s::int[])
          AND i.state = 'waiting' AND i.attempt = 1
        ORDER BY i.item OFFSET 0 FOR NO KEY UPDATE
    ) AS i
), queued AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, first, suspect)
    SELECT job_id, item, attempt, coalesce(queue, ''), now() + make_interval(secs => %(pause)s), true, %(tried)s
    FROM held ORDER BY job_id, item
    ON CONFLICT (job_id, item) DO NOTHING
    RETURNING job_id
), locked AS (
    SELECT j.id, q.queued FROM callboard.jobs AS j
    JOIN (SELECT job_id, count(*) AS queued FROM queued GROUP BY job_id) AS q ON q.job_id = j.id
    ORDER BY j.id FOR NO KEY UPDATE OF j
)
UPDATE callboard.jobs AS j SET published = j.published - l.queued, updated_at = now()
FROM locked AS l WHERE j.id = l.id
