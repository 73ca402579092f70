-- run_parent: one of its stages has begun. Transition: pending -> running. Caller: stages.settle, under its lock.
UPDATE callboard.jobs SET state = 'running', started_at = %(started)s, updated_at = now()
WHERE id = %(parent)s AND state = 'pending' AND finished_at IS NULL
