-- lock_parent: whoever changes the state of a job of stages, or opens one of its stages that is over, has this lock. No
-- flush takes it, so it may be held while items are locked. Caller: stages.lock.
-- Rows: (state, stopping, over); none: no such job of stages. Lock order: before all others.
SELECT state::text, stopping::text, finished_at IS NOT NULL FROM callboard.jobs
WHERE id = %s AND stages IS NOT NULL FOR NO KEY UPDATE
