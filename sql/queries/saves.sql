-- name: lock_succeeding
-- Lock the items whose outcome is about to be recorded, before the user's statements that belong to it run.
-- Guard: the same as in `record`, which finds these items unchanged: they stay locked until the transaction ends.
-- Caller: the journal, in the transaction of `record`. Rows: (job, item) of those that `record` will move.
-- Lock order: items by key; then the locks of the user's statements, then jobs: a long user statement delays no job.
WITH event AS (
    SELECT e.* FROM unnest(%(job)s::bigint[], %(item)s::int[], %(attempt)s::int[]) AS e (job, item, attempt),
                    {lock_wait}
), locked AS (
    SELECT i.job_id, i.item, i.attempt = e.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM event AS e JOIN callboard.items AS i ON i.job_id = e.job AND i.item = e.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
)
SELECT job_id, item FROM locked WHERE open
