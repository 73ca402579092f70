-- wake_postponed: a worker lives again that has the actor of these messages: they are due.
-- Guard: they still wait. One that somebody has in hand is woken at the next look, if it waits then.
-- Caller: the sweep. Lock order: rows of the outbox without waiting for any.
WITH able AS (
    SELECT DISTINCT unnest(actors) AS actor FROM callboard.workers
    WHERE stopped_at IS NULL AND died_at IS NULL AND beat_at > now() - make_interval(secs => %(dead_after)s)
), waiting AS (
    SELECT o.id
    FROM callboard.outbox AS o JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
    JOIN callboard.jobs AS j ON j.id = o.job_id
    WHERE o.due_at = timestamptz '9999-01-01Z' AND coalesce(i.actor, j.actor) IN (SELECT actor FROM able)
    FOR UPDATE OF o SKIP LOCKED
)
UPDATE callboard.outbox AS o SET due_at = now() FROM waiting WHERE o.id = waiting.id
