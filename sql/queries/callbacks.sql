-- name: claim_callbacks
-- Callbacks that are due, for as long as the lease lasts. It counts as a try, and fences the one before.
-- Guard: neither delivered nor given up, due, and unclaimed or abandoned; of a webhook, its host is none of `full`.
-- Caller: the callback dispatcher. Rows: Callback. Lock order: nothing but rows of this table, waiting for none.
WITH RECURSIVE host AS (
    -- Each host for which something waits, '' for messages, by one step down the index a host.
    SELECT CASE WHEN %(webhooks)s THEN (
        SELECT coalesce(c.host, '') FROM callboard.callbacks AS c
        WHERE c.delivered_at IS NULL AND c.gave_up_at IS NULL AND coalesce(c.host, '') > ''
        ORDER BY coalesce(c.host, '') LIMIT 1) ELSE '' END AS name
    UNION ALL
    SELECT (SELECT coalesce(c.host, '') FROM callboard.callbacks AS c
            WHERE c.delivered_at IS NULL AND c.gave_up_at IS NULL AND coalesce(c.host, '') > host.name
            ORDER BY coalesce(c.host, '') LIMIT 1)
    FROM host WHERE %(webhooks)s AND host.name IS NOT NULL
), waiting AS MATERIALIZED (
    SELECT c.id, c.due_at FROM host CROSS JOIN LATERAL (
        SELECT c.id, c.due_at FROM callboard.callbacks AS c
        WHERE c.delivered_at IS NULL AND c.gave_up_at IS NULL AND coalesce(c.host, '') = host.name
          AND c.due_at <= now() AND (c.claimed_until IS NULL OR c.claimed_until <= now())
        ORDER BY c.due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) AS c
    WHERE host.name <> ALL (%(full)s::text[])
), due AS (
    SELECT id FROM waiting ORDER BY due_at LIMIT %(limit)s
)
UPDATE callboard.callbacks AS c
SET tries = c.tries + 1, claimed_until = now() + make_interval(
    secs => CASE WHEN %(webhooks)s THEN %(WEBHOOK_LEASE_SECONDS)s ELSE %(MESSAGE_LEASE_SECONDS)s::float8 END)
FROM due WHERE c.id = due.id
RETURNING c.id::text, c.job_id, c.tries, c.url, c.host, c.actor, c.queue, c.job

-- name: mark_delivered
-- A callback is delivered. Guard: it wasn't before; one that was given up meanwhile is delivered all the same.
-- Caller: the callback dispatcher; for a message in the transaction that makes it an item, so that it is queued once.
-- Rows: (id); none: it was delivered, or its job is deleted. Lock order: after the jobs.
UPDATE callboard.callbacks SET delivered_at = now(), gave_up_at = NULL, claimed_until = NULL, error = NULL
WHERE id = %(id)s::uuid AND delivered_at IS NULL
RETURNING id

-- name: postpone_callback
-- A try failed. Transition: claimed -> waiting for its next try | given up.
-- Guard: nobody has claimed it since. Caller: the callback dispatcher. Rows: (given up); none: overtaken, or deleted.
UPDATE callboard.callbacks
SET error = %(error)s, claimed_until = NULL, due_at = now() + make_interval(secs => %(pause)s),
    gave_up_at = CASE WHEN %(last)s THEN now() END
WHERE id = %(id)s::uuid AND tries = %(tries)s AND delivered_at IS NULL AND gave_up_at IS NULL
RETURNING gave_up_at IS NOT NULL
