-- stages_of: the stages of a job, in order. Caller: stages.of, which mostly has the parent locked: then none that is over
-- is opened meanwhile. Rows: StageRow.
SELECT id, stage, name, coalesce(actor, ''), makes, on_failure, state::text, stopping IS NOT NULL, finished_at IS NOT NULL,
       sealed, total, consumed, failed, reason, started_at, maker IS NOT NULL
FROM callboard.jobs WHERE parent_id = %s ORDER BY stage
