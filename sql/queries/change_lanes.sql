-- change_lanes: the lanes of what is in flight, by the argument that a job's lanes go by now.
-- Caller: the publisher, which holds the job's claim, and its lock. Lock order: the job, then lanes, which only such a
-- holder waits for.
WITH told AS MATERIALIZED (
    SELECT %(job)s::bigint AS job_id, t.* FROM unnest(%(item)s::int[], %(lane)s::text[]) AS t (item, lane)
), changed AS (
    UPDATE callboard.lanes AS l SET lane = t.lane FROM told AS t WHERE l.job_id = t.job_id AND l.item = t.item
    RETURNING l.item
)
UPDATE callboard.jobs AS j SET laned_by = %(by)s
FROM (SELECT count(*) FROM changed) AS these_first WHERE j.id = %(job)s
