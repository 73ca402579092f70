-- cancel_rest: a stopped job goes on with some of its items; the others that had not ended stay cancelled.
-- Transition: waiting | retrying -> cancelled. Caller: controls.retry, under the job's lock. Rows: none, counted.
-- The numbers are hashed, however many: so the planner guesses ten of what it gets from a subquery. An array as it is
-- would be gone through for each item, by a plan that is kept for any, and by PostgreSQL 14.
UPDATE callboard.items SET was = state, state = 'cancelled', finished_at = now(), retry_options = NULL
WHERE job_id = %(job)s AND state IN ('waiting', 'retrying') AND item NOT IN (SELECT unnest((SELECT %(keep)s::int[])))
