-- seal_job: no more items come from outside. Transition: open -> sealed; and completed when nothing is left to do.
-- Guard: neither sealed nor stopped. Caller: submit, job(), the sweep. Rows: (state); none: sealed or stopped before.
UPDATE callboard.jobs
SET sealed = true,
    state = CASE WHEN stopping IS NULL AND succeeded + failed + skipped + cancelled = total THEN 'completed' ELSE state END,
    finished_at = CASE WHEN stopping IS NULL AND succeeded + failed + skipped + cancelled = total THEN now() END,
    updated_at = now()
WHERE id = %s AND NOT sealed AND finished_at IS NULL
RETURNING state::text
