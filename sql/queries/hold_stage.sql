-- hold_stage: whether a worker is still the one that makes a stage; the row stays locked to the end of the transaction.
-- Guard: open, neither paused nor being stopped nor sealed; and the stage before is completed: a claim that began before
-- items of that were given another attempt did not see it, and from the claim on a retry leaves them alone.
-- Caller: stages.holds. Rows: (id); none: it is to end.
SELECT s.id FROM callboard.jobs AS s
WHERE s.id = %s AND s.maker = %s AND NOT s.sealed AND s.finished_at IS NULL AND s.stopping IS NULL AND s.state <> 'paused'
  AND EXISTS (SELECT FROM callboard.jobs AS b
              WHERE b.parent_id = s.parent_id AND b.stage = s.stage - 1 AND b.state = 'completed')
FOR NO KEY UPDATE OF s
