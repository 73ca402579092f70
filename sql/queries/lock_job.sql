-- lock_job: a job that is over stays so while its items are chosen. Caller: controls.retry.
-- Rows: (watermark, items cancelled); none: it is open, or leaving.
SELECT watermark, total - succeeded - failed - skipped FROM callboard.jobs
WHERE id = %s AND finished_at IS NOT NULL AND leaving_at IS NULL FOR NO KEY UPDATE
