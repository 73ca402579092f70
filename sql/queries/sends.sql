-- name: standing_job
-- The job of the day (UTC) of an actor's plain sends, made when it isn't there yet.
-- Caller: the store of sends. Rows: one, (id).
WITH made AS (
    INSERT INTO callboard.jobs (name, actor, queue, standing_on)
    VALUES (%(actor)s, %(actor)s, %(queue)s, (now() AT TIME ZONE 'UTC')::date)
    ON CONFLICT (actor, standing_on) WHERE standing_on IS NOT NULL AND NOT sealed DO NOTHING
    RETURNING id
)
SELECT id FROM made
UNION ALL
SELECT id FROM callboard.jobs
WHERE actor = %(actor)s AND standing_on = (now() AT TIME ZONE 'UTC')::date AND NOT sealed
LIMIT 1

-- name: items_by_key
-- Which of these item keys their jobs have already, under the jobs' locks.
-- Caller: the store of sends, for messages recorded on sight. Rows: (job_id, item_key, item).
SELECT i.job_id, i.item_key, i.item
FROM unnest(%(job)s::bigint[], %(key)s::text[]) AS k (job_id, item_key)
JOIN callboard.items AS i ON i.job_id = k.job_id AND i.item_key = k.item_key

-- name: items_of_earlier_days
-- Messages recorded on sight that are on record in a standing job of one of the days before: they were
-- delivered before midnight (UTC), and come again. An item that has long ended is none of them: its message was put
-- back by somebody who wants it run again. Caller: the store of sends. Rows: (item_key, job_id, item).
SELECT DISTINCT ON (k.item_key) k.item_key, i.job_id, i.item
FROM unnest(%(actor)s::text[], %(key)s::text[]) AS k (actor, item_key)
JOIN callboard.jobs AS j ON j.actor = k.actor
    AND j.standing_on BETWEEN (now() AT TIME ZONE 'UTC')::date - 7 AND (now() AT TIME ZONE 'UTC')::date - 1
JOIN callboard.items AS i ON i.job_id = j.id AND i.item_key = k.item_key
WHERE i.finished_at IS NULL OR i.finished_at > now() - interval '1 hour'
ORDER BY k.item_key, i.job_id DESC

-- name: add_items
-- Plain sends and messages recorded on sight, numbered by the caller under their jobs' locks.
-- Transition: none -> waiting; with an outbox row, unless its message is under way already. It is claimed for its sender,
-- unless it waits for its time, or its job is one of which others wait, too (see claim_outbox).
-- Caller: the store of sends. Rows: (job_id, item, outbox id, whether it is claimed) of what is to be published.
WITH new AS (
    SELECT n.*, (%(item)s::int[])[n.nth] AS item FROM {NewItem} AS n
), stored AS (
    INSERT INTO callboard.items (job_id, item, actor, queue, message_id, args, options, sent_at, item_key)
    SELECT job, item, actor, queue, message_id, args, options, to_timestamp(sent_ms / 1000.0), key FROM new
), grown AS (
    UPDATE callboard.jobs AS j
    SET total = j.total + n.items, published = j.published + n.published, updated_at = now()
    FROM (SELECT job, count(*) AS items, count(*) FILTER (WHERE published) AS published FROM new GROUP BY 1) AS n
    WHERE j.id = n.job
)
INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, sent_ms, first, claimed_until)
SELECT n.job, n.item, 1, n.queue, now() + make_interval(secs => n.delay), n.sent_ms, true,
       CASE WHEN n.delay = 0 AND %(publishing)s AND j.state <> 'paused' AND j.concurrency IS NULL AND j.rate IS NULL
                 AND j.lane_by IS NULL AND {its_time_is}
            THEN now() + make_interval(secs => %(lease)s) END
FROM new AS n JOIN callboard.jobs AS j ON j.id = n.job WHERE n.published IS NOT TRUE
RETURNING job_id, item, id, claimed_until IS NOT NULL
