-- name: standing_job
-- The job of the day (UTC) of an actor's plain sends, made when it isn't there yet.
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
-- Jobs that are about to get items with keys, and the standing jobs of their actors that take items: a process that has not
-- noticed midnight (UTC), and one that has, add to two of them, and whoever comes second is to see what the first stored.
-- Caller: the store of sends, for messages recorded on sight. Rows: none. Lock order: jobs by id.
-- Waits for a lock for SEND_LOCK_WAIT_SECONDS at most.
SELECT FROM callboard.jobs AS j, (SELECT set_config('lock_timeout', concat(%(SEND_LOCK_WAIT_SECONDS)s::float8 * 1000, 'ms'), true)) AS lock_wait
WHERE j.id IN (
    SELECT unnest(%(jobs)s::bigint[])
    UNION ALL
    SELECT id FROM callboard.jobs WHERE actor = ANY (%(actors)s) AND standing_on IS NOT NULL AND NOT sealed
)
ORDER BY j.id FOR NO KEY UPDATE OF j

-- name: items_by_key
-- Messages recorded on sight that a standing job has as items, of any of the last days or one that is open still, as they
-- are under the locks of lock_for_keys. `job`: where each would be stored. Of another job only what has not long ended
-- counts, unless the message is `redelivered`: else somebody has sent it anew, who wants it run again.
-- Caller: the store of sends. Rows: (actor, item_key, job_id, item).
SELECT DISTINCT ON (k.actor, k.item_key) k.actor, k.item_key, i.job_id, i.item
FROM unnest(%(actor)s::text[], %(key)s::text[], %(job)s::bigint[], %(redelivered)s::bool[]) AS k (actor, item_key, job, redelivered)
JOIN callboard.jobs AS j ON j.actor = k.actor
    AND j.standing_on IS NOT NULL AND (j.standing_on >= (now() AT TIME ZONE 'UTC')::date - 7 OR j.finished_at IS NULL)
JOIN callboard.items AS i ON i.job_id = j.id AND i.item_key = k.item_key
WHERE k.redelivered OR j.id = k.job OR i.finished_at IS NULL OR i.finished_at > now() - interval '1 hour'
ORDER BY k.actor, k.item_key, i.job_id DESC

-- name: add_items
-- Plain sends and messages recorded on sight, in one statement and so in one transaction. Each is numbered from the total
-- of its job on, as the job is locked.
-- Transition: none -> waiting; with an outbox row, unless its message is under way already. It is claimed for its sender,
-- unless it waits for its time, or its job is one of which others wait, too (see claim_outbox).
-- Guard: the job is neither over nor being stopped nor of stages, nor sealed, but for what its own items send (`child`).
-- One with a key that its job has already is refused by the index: the caller looks for it under the lock of the job.
-- Caller: the store of sends. Rows: (nth, item, outbox id; NULL: it is not claimed) of what is stored.
-- Lock order: jobs by id. Waits for a lock for SEND_LOCK_WAIT_SECONDS at most.
WITH new AS (
    SELECT n.*, (%(child)s::bool[])[n.nth] AS child
    FROM {NewItem} AS n, (SELECT set_config('lock_timeout', concat(%(SEND_LOCK_WAIT_SECONDS)s::float8 * 1000, 'ms'), true)) AS lock_wait
), locked AS (
    SELECT j.id, j.total, j.published, j.sealed,
           j.finished_at IS NULL AND j.stopping IS NULL AND j.stages IS NULL AS takes,
           %(publishing)s AND j.state <> 'paused' AND NOT {is_limited} AND {its_time_is} AS goes
    FROM callboard.jobs AS j WHERE j.id IN (SELECT job FROM new) ORDER BY j.id FOR NO KEY UPDATE OF j
), taken AS (
    SELECT n.*, l.goes AND n.delay = 0 AS goes, l.total + row_number() OVER (PARTITION BY n.job ORDER BY n.nth) - 1 AS item
    FROM new AS n JOIN locked AS l ON l.id = n.job WHERE l.takes AND (n.child OR NOT l.sealed)
), stored AS (
    INSERT INTO callboard.items (job_id, item, actor, queue, message_id, args, options, sent_at, item_key)
    SELECT job, item, actor, queue, message_id, args, options, to_timestamp(sent_ms / 1000.0), key FROM taken
), grown AS (
    UPDATE callboard.jobs AS j
    SET total = l.total + t.items, published = l.published + t.published, updated_at = now()
    FROM locked AS l JOIN (
        SELECT job, count(*) AS items, count(*) FILTER (WHERE published) AS published FROM taken GROUP BY 1
    ) AS t ON t.job = l.id
    WHERE j.id = l.id
), queued AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, sent_ms, first, claimed_until)
    SELECT job, item, 1, queue, now() + make_interval(secs => delay), sent_ms, true,
           CASE WHEN goes THEN now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s) END
    FROM taken WHERE published IS NOT TRUE
    RETURNING job_id, item, id, claimed_until
)
SELECT t.nth, t.item, q.id FROM taken AS t
LEFT JOIN queued AS q ON q.job_id = t.job AND q.item = t.item AND q.claimed_until IS NOT NULL
