-- leave_stage: a worker makes a stage no more. Guard: it did. Caller: stages.leave.
UPDATE callboard.jobs SET maker = NULL, updated_at = now() WHERE id = %s AND maker = %s
