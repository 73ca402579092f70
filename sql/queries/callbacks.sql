-- name: claim_callbacks
-- Claim due callbacks, until the lease expires. A claim counts as a try, and fences the one before.
-- Hosts, and the tenants whose webhooks go to one, come in turn, from `host` and `tenant` on; so do the tenants of messages.
-- Guard: neither delivered nor given up, due, and unclaimed or abandoned; a webhook's host is not in `full`.
-- Caller: the callback dispatcher. Rows: Callback. Lock order: only rows of this table, without waiting for any.
WITH RECURSIVE turn AS (
    -- Each host and tenant with a waiting callback, found by one index step each, to the last whose callbacks are claimed.
    ({waiting_callback} >= (%(host)s::text, %(tenant)s::text) ORDER BY 1, 2 LIMIT 1)
    UNION ALL
    SELECT n.* FROM turn CROSS JOIN LATERAL (
        {waiting_callback} > (turn.host, turn.tenant) ORDER BY 1, 2 LIMIT 1
    ) AS n
    WHERE %(webhooks)s OR turn.host = ''
), due AS MATERIALIZED (
    SELECT c.id FROM turn CROSS JOIN LATERAL (
        SELECT c.id FROM callboard.callbacks AS c
        WHERE c.delivered_at IS NULL AND c.gave_up_at IS NULL AND coalesce(c.host, '') = turn.host AND c.tenant = turn.tenant
          AND c.due_at <= now() AND (c.claimed_until IS NULL OR c.claimed_until <= now())
        ORDER BY c.due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) AS c
    WHERE (turn.host > '') = %(webhooks)s AND turn.host <> ALL (%(full)s::text[]) LIMIT %(limit)s
)
UPDATE callboard.callbacks AS c
SET tries = c.tries + 1, claimed_until = now() + make_interval(
    secs => CASE WHEN %(webhooks)s THEN %(WEBHOOK_LEASE_SECONDS)s ELSE %(MESSAGE_LEASE_SECONDS)s::float8 END)
FROM due WHERE c.id = due.id
RETURNING c.id::text, c.job_id, c.tries, c.url, c.host, c.actor, c.queue, c.tenant, c.job

-- part: waiting_callback
-- The host ('' for messages) and the tenant of undelivered callbacks, to be compared.
SELECT coalesce(c.host, '') AS host, c.tenant FROM callboard.callbacks AS c
WHERE c.delivered_at IS NULL AND c.gave_up_at IS NULL AND (coalesce(c.host, ''), c.tenant)

-- name: mark_delivered
-- A callback is delivered. Guard: it was not delivered before; it may have been given up meanwhile.
-- Caller: the callback dispatcher; for a message in the transaction that stores its item, so that it is queued once.
-- Rows: (id); none: it was already delivered, or its job is deleted. Lock order: after the jobs.
UPDATE callboard.callbacks SET delivered_at = now(), gave_up_at = NULL, claimed_until = NULL, error = NULL
WHERE id = %(id)s::uuid AND delivered_at IS NULL
RETURNING id

-- name: postpone_callback
-- A try failed. Transition: claimed -> waiting for its next try | given up.
-- Guard: it has not been claimed again. Caller: the callback dispatcher. Rows: (given up); none: claimed again, or deleted.
UPDATE callboard.callbacks
SET error = %(error)s, claimed_until = NULL, due_at = now() + make_interval(secs => %(pause)s),
    gave_up_at = CASE WHEN %(last)s THEN now() END
WHERE id = %(id)s::uuid AND tries = %(tries)s AND delivered_at IS NULL AND gave_up_at IS NULL
RETURNING gave_up_at IS NOT NULL
