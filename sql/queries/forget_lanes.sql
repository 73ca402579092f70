-- forget_lanes: lanes go by another argument now: those of a job's messages are told anew.
-- Caller: the publisher, which holds the job's claim. Lock order: items by key, then their outbox rows: see republish, and
-- why OFFSET 0.
WITH held AS (
    SELECT i.job_id, i.item
    FROM (SELECT item FROM callboard.outbox WHERE job_id = %(job)s AND lane IS NOT NULL ORDER BY item) AS o
    CROSS JOIN LATERAL (
        SELECT job_id, item FROM callboard.items AS i
        WHERE i.job_id = %(job)s AND i.item = o.item OFFSET 0 FOR NO KEY UPDATE
    ) AS i
)
UPDATE callboard.outbox AS o SET lane = NULL FROM held WHERE o.job_id = held.job_id AND o.item = held.item
