-- lock_jobs: the jobs that are about to get items, locked in order of id.
-- Caller: add_items. Rows: (id, total, open); a job that is sealed or stopped, or has stages, takes none from outside.
SELECT id, total, NOT sealed AND finished_at IS NULL AND stopping IS NULL AND stages IS NULL FROM callboard.jobs
WHERE id = ANY(%s) ORDER BY id FOR NO KEY UPDATE
