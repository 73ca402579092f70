-- jobs_out: open jobs of which something is published and has no end: it lies in a queue, is held, or is lost.
-- Caller: the search for lost messages. Rows: Out; `still`: the job has not moved for a while.
SELECT id, watermark, bulk_end, total, updated_at < now() - make_interval(secs => %(quiet)s)
FROM callboard.jobs
WHERE finished_at IS NULL AND stopping IS NULL AND state <> 'paused'
  AND published > succeeded + failed + skipped + cancelled + retrying + redo
ORDER BY id
