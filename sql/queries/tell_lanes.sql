-- tell_lanes: the lanes of messages in the outbox. Caller: the publisher, which holds the job's claim, and its lock. One
-- that was settled or written anew meanwhile has another id, or none; one that somebody has in hand is told later.
-- Lock order: the job, then rows of the outbox without waiting for any.
WITH told AS (
    SELECT o.id, t.lane FROM callboard.outbox AS o
    JOIN unnest(%(id)s::bigint[], %(lane)s::text[]) AS t (id, lane) ON t.id = o.id
    FOR UPDATE OF o SKIP LOCKED
)
UPDATE callboard.outbox AS o SET lane = told.lane FROM told WHERE o.id = told.id
