-- cancel_rest: a stopped job goes on with some of its items; the others that had not ended stay cancelled.
-- Transition: waiting | retrying -> cancelled. Caller: controls.retry, under the job's lock. Rows: none, counted.
UPDATE callboard.items SET was = state, state = 'cancelled', finished_at = now(), retry_options = NULL
WHERE job_id = %(job)s AND state IN ('waiting', 'retrying') AND item <> ALL (%(keep)s::int[])
