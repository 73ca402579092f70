-- job_callbacks: whom the ends of a job called, the latest end first, and how that went. Caller: reads.callbacks.
-- Rows: one a callback.
SELECT id::text, state::text AS "on", url, actor,
       CASE WHEN delivered_at IS NOT NULL THEN 'delivered' WHEN gave_up_at IS NOT NULL THEN 'gave up' ELSE 'waiting' END AS state,
       tries, error, created_at, coalesce(delivered_at, gave_up_at) AS finished_at,
       CASE WHEN delivered_at IS NULL AND gave_up_at IS NULL THEN greatest(due_at, claimed_until) END AS due_at
FROM callboard.callbacks WHERE job_id = %(job)s
ORDER BY ended_at DESC, url NULLS FIRST, actor, id LIMIT %(limit)s
