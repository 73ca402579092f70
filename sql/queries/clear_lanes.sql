-- clear_lanes: of jobs that are over nothing is in flight. Caller: the sweep.
-- Lock order: rows of lanes without waiting for any; what somebody has in hand is cleared at the next look.
WITH over AS (
    SELECT l.job_id, l.item FROM callboard.lanes AS l JOIN callboard.jobs AS j ON j.id = l.job_id
    WHERE j.finished_at IS NOT NULL FOR UPDATE OF l SKIP LOCKED
)
DELETE FROM callboard.lanes AS l USING over WHERE l.job_id = over.job_id AND l.item = over.item
