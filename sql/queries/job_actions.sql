-- job_actions: who did what to a job, the latest first. Caller: reads.actions. Rows: one an action.
SELECT id, done_at, action, who, via, detail FROM callboard.actions
WHERE job_id = %(job)s AND id < %(before)s
  AND EXISTS (SELECT FROM callboard.jobs AS j WHERE j.id = %(job)s AND j.leaving_at IS NULL)
ORDER BY id DESC LIMIT %(limit)s
