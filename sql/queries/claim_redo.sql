-- claim_redo: messages that are published in their job's turn (all of a limited job's), in order of their items, for as long as the lease lasts.
-- Guard: unclaimed or abandoned (then it may have been published: suspect). Caller: the publisher, which holds the job's
-- claim. Rows: Outgoing.
WITH due AS (
    SELECT o.id, o.claimed_until IS NOT NULL AS again FROM callboard.outbox AS o
    WHERE o.job_id = %(job)s AND (o.redo AND o.due_at = 'infinity' OR %(limited)s AND o.due_at <= now())
      AND (o.claimed_until IS NULL OR o.claimed_until <= now())
    ORDER BY o.item LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE callboard.outbox AS o
    SET claimed_until = now() + make_interval(secs => %(lease)s), suspect = o.suspect OR due.again
    FROM due WHERE o.id = due.id
    RETURNING o.*
)
SELECT c.job_id, c.item, c.attempt, j.epoch, c.suspect, coalesce(i.actor, j.actor), coalesce(i.queue, j.queue),
       coalesce(i.message_id, c.job_id || '-' || c.item), i.args,
       coalesce(c.options, i.retry_options, i.options),
       coalesce(c.sent_ms, (extract(epoch FROM i.sent_at) * 1000)::bigint), c.id, c.dead
FROM claimed AS c JOIN callboard.items AS i USING (job_id, item) JOIN callboard.jobs AS j ON j.id = c.job_id
ORDER BY c.item
