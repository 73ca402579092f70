-- hold_stage: whether a worker is still the one that makes a stage; the row stays locked to the end of the transaction.
-- Guard: open, neither paused nor being stopped nor sealed. Caller: stages.holds. Rows: (id); none: it is to end.
SELECT id FROM callboard.jobs
WHERE id = %s AND maker = %s AND NOT sealed AND finished_at IS NULL AND stopping IS NULL AND state <> 'paused'
FOR NO KEY UPDATE
