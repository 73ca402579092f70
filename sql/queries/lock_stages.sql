-- lock_stages: no worker begins to make a stage while items of the one before are given another attempt; and what is over
-- of the stages is locked in its turn.
-- Caller: controls.retry, under the parent's lock. Lock order: jobs by id.
SELECT id FROM callboard.jobs
WHERE parent_id = %s AND (stage > 0 AND NOT sealed OR finished_at IS NOT NULL) ORDER BY id FOR NO KEY UPDATE
