-- sample_jobs: a point for each open job that moved since its last. Caller: the sweep.
INSERT INTO callboard.samples (job_id, final, failed)
SELECT j.id, j.succeeded + j.failed + j.skipped, j.failed
FROM callboard.jobs AS j
LEFT JOIN LATERAL (
    SELECT s.final FROM callboard.samples AS s WHERE s.job_id = j.id ORDER BY s.taken_at DESC LIMIT 1
) AS last ON true
WHERE j.finished_at IS NULL AND j.started_at IS NOT NULL
  AND last.final IS DISTINCT FROM j.succeeded + j.failed + j.skipped
ON CONFLICT DO NOTHING
