-- name: lock_succeeding
-- The items whose outcome is about to be recorded, before the user's own statements run that belong to it.
-- Guard: as that of `record`, which finds them as they are here: they stay locked until the transaction ends.
-- Caller: the journal, in the transaction of `record`. Rows: (job, item) of those that it will move.
-- Lock order: items by key; then what the user's statements lock, then jobs: these may take long, and hold up no job.
WITH event AS (
    SELECT e.* FROM unnest(%(job)s::bigint[], %(item)s::int[], %(attempt)s::int[]) AS e (job, item, attempt),
                    {lock_wait}
), locked AS (
    SELECT i.job_id, i.item, i.attempt = e.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM event AS e JOIN callboard.items AS i ON i.job_id = e.job AND i.item = e.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
)
SELECT job_id, item FROM locked WHERE open
