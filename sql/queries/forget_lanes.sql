-- forget_lanes: lanes go by another argument now: those of a job's messages are told anew.
-- Caller: the publisher, which holds the job's claim. Lock order: items by key, then their outbox rows.
WITH held AS (
    SELECT i.item FROM callboard.outbox AS o JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
    WHERE o.job_id = %(job)s AND o.lane IS NOT NULL
    ORDER BY i.item FOR NO KEY UPDATE OF i
)
UPDATE callboard.outbox AS o SET lane = NULL FROM held WHERE o.job_id = %(job)s AND o.item = held.item
