-- keep_claim: a publisher goes on with a job.
-- Guard: the claim is still this publisher's (its token), the job open, neither paused nor being stopped.
-- Caller: the publisher, in each transaction that only the holder of the claim may do. Rows: (id); none: undo.
UPDATE callboard.jobs SET publish_until = now() + make_interval(secs => %(lease)s)
WHERE id = %(job)s AND publish_token = %(token)s AND publish_until IS NOT NULL
  AND finished_at IS NULL AND stopping IS NULL AND state <> 'paused'
RETURNING id
