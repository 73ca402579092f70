-- clear_outbox: what was to be published for a stopped job, and may be under way with its old epoch, is not counted on;
-- nor is what goes to the dead letters, though it was parked before.
-- Caller: controls.retry, under the job's lock. Rows: one, how many of them were to be published for the first time.
WITH dead AS (
    UPDATE callboard.outbox SET redo = false WHERE job_id = %(job)s AND dead AND redo
), gone AS (
    DELETE FROM callboard.outbox WHERE job_id = %(job)s AND NOT dead RETURNING first
)
SELECT count(*) FILTER (WHERE first) FROM gone
