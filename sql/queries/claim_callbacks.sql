-- claim_callbacks: callbacks that are due, for as long as the lease lasts. It counts as a try, and fences the one before.
-- Guard: neither delivered nor given up, due, and unclaimed or abandoned; of a webhook, its host is none of `full`.
-- Caller: middleware/callbacks.py. Rows: Callback. Lock order: nothing but rows of this table, waiting for none.
WITH due AS (
    SELECT c.id FROM callboard.callbacks AS c
    WHERE c.delivered_at IS NULL AND c.gave_up_at IS NULL
      AND c.due_at <= now() AND (c.claimed_until IS NULL OR c.claimed_until <= now())
      AND (c.host IS NOT NULL) = %(webhooks)s AND coalesce(c.host, '') <> ALL (%(full)s::text[])
    ORDER BY c.due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE callboard.callbacks AS c
SET tries = c.tries + 1, claimed_until = now() + make_interval(secs => %(lease)s)
FROM due WHERE c.id = due.id
RETURNING c.id::text, c.job_id, c.state::text, c.tries, c.url, c.host, c.actor, c.queue, c.job
