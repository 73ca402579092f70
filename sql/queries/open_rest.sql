-- open_rest: items of a stopped job that waited for a retry go on without waiting. Transition: retrying -> waiting.
-- Caller: controls.retry, under the job's lock.
UPDATE callboard.items SET was = state, state = 'waiting' WHERE job_id = %s AND state = 'retrying'
