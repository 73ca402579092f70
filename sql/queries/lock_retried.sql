-- lock_retried: the items that a retry may move, and those of jobs that are over whose messages it drops or sends: all of
-- them before the first job, as everybody does.
-- Caller: controls.retry. Rows: one, how many. Lock order: items by key.
WITH held AS (
    SELECT i.item FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id
    WHERE i.job_id = ANY(%(jobs)s)
      AND (i.state::text = ANY(%(states)s::text[]) AND (%(items)s::int[] IS NULL OR i.item = ANY(%(items)s::int[]))
           OR i.job_id = ANY(%(over)s::bigint[])
              AND (i.state = 'retrying'
                   OR i.state = 'waiting' AND (NOT %(whole)s OR i.message_id IS NOT NULL OR i.item < j.watermark)
                   OR EXISTS (SELECT FROM callboard.outbox AS o WHERE o.job_id = i.job_id AND o.item = i.item)))
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
)
SELECT count(*) FROM held
