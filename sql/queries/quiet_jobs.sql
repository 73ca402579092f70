-- quiet_jobs: open jobs of which something was published, isn't final, and hasn't moved for a while.
-- Caller: the sweep, in search of lost messages. Rows: (id, queue or NULL).
SELECT id, queue FROM callboard.jobs
WHERE finished_at IS NULL AND state <> 'paused'
  AND published > succeeded + failed + skipped + retrying
  AND updated_at < now() - make_interval(secs => %(quiet)s)
ORDER BY id
