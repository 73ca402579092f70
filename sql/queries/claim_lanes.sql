-- claim_lanes: messages of a job whose lanes have room, by item, for as long as the lease lasts; they are in flight now.
-- Guard: unclaimed, or abandoned by a publisher (then it may have been published: suspect, and it has its place already).
-- Caller: the publisher, which holds the job's claim, and its lock. Rows: Outgoing.
-- Lock order: the job, then rows of the outbox without waiting for any, then lanes, which only such a holder locks.
WITH RECURSIVE lane AS (
    -- Each lane of which something waits, by one step down the index a lane.
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
), free AS (
    SELECT o.id, o.item FROM used
    CROSS JOIN LATERAL (
        SELECT o.id, o.item FROM callboard.outbox AS o
        WHERE o.job_id = %(job)s AND o.lane = used.name AND NOT o.dead
          AND (o.redo AND o.due_at = 'infinity' OR o.due_at <= now())
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
    SELECT free.id, o.again FROM (SELECT * FROM free ORDER BY item) AS free
    CROSS JOIN LATERAL (
        SELECT o.claimed_until IS NOT NULL AS again FROM callboard.outbox AS o
        -- Once more, for these are looked at as they are when they are locked.
        WHERE o.id = free.id AND NOT o.dead AND (o.redo AND o.due_at = 'infinity' OR o.due_at <= now())
          AND (o.claimed_until IS NULL OR o.claimed_until <= now()) OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS o
    LIMIT %(limit)s
), claimed AS (
    UPDATE callboard.outbox AS o
    SET claimed_until = now() + make_interval(secs => %(lease)s), suspect = o.suspect OR due.again
    FROM due WHERE o.id = due.id
    RETURNING o.*
), entered AS (
    INSERT INTO callboard.lanes (job_id, item, lane) SELECT c.job_id, c.item, coalesce(c.lane, '') FROM claimed AS c
    ON CONFLICT DO NOTHING
)
SELECT c.job_id, c.item, c.attempt, j.epoch, c.suspect, coalesce(i.actor, j.actor), coalesce(i.queue, j.queue),
       coalesce(i.message_id, c.job_id || '-' || c.item), i.args,
       coalesce(c.options, i.retry_options, i.options),
       coalesce(c.sent_ms, (extract(epoch FROM i.sent_at) * 1000)::bigint), c.id, c.dead
FROM claimed AS c JOIN callboard.items AS i USING (job_id, item) JOIN callboard.jobs AS j ON j.id = c.job_id
ORDER BY c.item
