-- release_outbox: these messages could not be published, or nobody knows; whoever claims them next sends them as suspect.
-- Those that were refused are due after a `pause` only, behind all others, or they would be the first each time.
-- Guard: the row is still claimed, for the attempt that was to be sent; else it is that of a retry, or parked.
-- Caller: the publisher. Lock order: rows of the outbox, without waiting for any: of one that is locked the claim lapses.
WITH unsent AS (
    SELECT o.id, o.attempt = s.attempt AND o.claimed_until IS NOT NULL AS claimed
    FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt) JOIN callboard.outbox AS o ON o.id = s.id
    FOR UPDATE OF o SKIP LOCKED
)
UPDATE callboard.outbox AS o
SET claimed_until = now(),
    due_at = CASE WHEN %(pause)s > 0 AND o.due_at < 'infinity' THEN now() + make_interval(secs => %(pause)s)
                  ELSE o.due_at END
FROM unsent AS u WHERE o.id = u.id AND u.claimed
