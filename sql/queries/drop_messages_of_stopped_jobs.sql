-- drop_messages_of_stopped_jobs: what was to be published for jobs that are over never is; what waits for the dead
-- letters goes there. It counts as published, so that what is left to publish stays exact.
-- Guard: the job, locked, is still over; what a publisher or a retry has in hand is left to it. Caller: the sweep.
-- Rows: none. Lock order: jobs by id, then rows of the outbox without waiting for any.
WITH over AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.id IN (SELECT o.job_id FROM callboard.outbox AS o WHERE NOT o.dead) AND j.finished_at IS NOT NULL
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), theirs AS MATERIALIZED (
    -- Hashed, however wrong the planner's guess is: joined, each message was compared with each job.
    SELECT o.id FROM callboard.outbox AS o WHERE NOT o.dead AND (o.job_id IN (SELECT id FROM over)) IS TRUE LIMIT %s
), lying AS (
    SELECT o.id FROM theirs CROSS JOIN LATERAL (
        SELECT id FROM callboard.outbox AS o WHERE o.id = theirs.id AND NOT o.dead OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS o
), gone AS (
    DELETE FROM callboard.outbox AS o USING lying WHERE o.id = lying.id RETURNING o.job_id, o.first, o.redo
)
UPDATE callboard.jobs AS j SET published = j.published + d.published, redo = j.redo - d.redo
FROM (
    SELECT job_id, count(*) FILTER (WHERE first) AS published, count(*) FILTER (WHERE redo) AS redo FROM gone GROUP BY job_id
) AS d
WHERE j.id = d.job_id
