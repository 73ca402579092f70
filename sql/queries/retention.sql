-- name: mark_deleted
-- Mark finished jobs, and their stages, as deleted: they are hidden, their keys are free, and their rows may be deleted.
-- Guard: a job is over, checked under its lock. RabbitMQ may still have messages of cancelled items: for these a row in
-- `deleted_jobs` outlives the job's row. Caller: actions.delete; the sweep and `callboard purge`, after expired_jobs.
-- Rows: (id), also of stages; none: see job_status. Lock order: jobs by id.
WITH whole AS (
    SELECT id FROM callboard.jobs
    WHERE id = ANY (%(jobs)s) AND finished_at IS NOT NULL AND deleted_at IS NULL AND parent_id IS NULL
    ORDER BY id FOR NO KEY UPDATE
), stages AS (
    -- Each is looked up by its id: otherwise all jobs may be compared with each.
    SELECT s.id FROM (
        SELECT s.id FROM whole CROSS JOIN LATERAL (
            SELECT id FROM callboard.jobs AS s WHERE s.parent_id = whole.id OFFSET 0
        ) AS s ORDER BY s.id
    ) AS one CROSS JOIN LATERAL (
        SELECT id FROM callboard.jobs AS s WHERE s.id = one.id AND s.finished_at IS NOT NULL OFFSET 0 FOR NO KEY UPDATE
    ) AS s
), marked AS (
    -- An array: after a lock wait, a changed row is compared again, and `IN (… UNION ALL …)` would not find it.
    UPDATE callboard.jobs AS j SET deleted_at = now(), key = NULL, standing_on = NULL
    WHERE j.id = ANY (ARRAY(SELECT id FROM whole UNION ALL SELECT id FROM stages))
    RETURNING j.*
), tombstones AS (
    INSERT INTO callboard.deleted_jobs (id, epoch) SELECT id, epoch FROM marked WHERE published > succeeded + failed + skipped
)
SELECT id FROM marked ORDER BY id

-- name: expired_jobs
-- Some expired finished jobs, in the order in which they ended; locked until they are marked.
-- `keep`: seconds for which jobs without their own `keep` are kept; NULL: for ever.
-- Guard: the job, as locked, ended long enough ago, and its callbacks are delivered or given up.
-- Caller: the sweep, `callboard purge`. Rows: (id). Lock order: jobs without waiting for any. A job with a locked stage is
-- left to a later call.
WITH expired AS MATERIALIZED (
    (SELECT j.id, j.finished_at FROM callboard.jobs AS j
     WHERE j.finished_at IS NOT NULL AND j.deleted_at IS NULL AND j.parent_id IS NULL
       AND j.keep IS NULL AND j.finished_at < (SELECT now() - make_interval(secs => %(keep)s::float8))  -- planned once
       AND j.id NOT IN (SELECT job_id FROM callboard.callbacks WHERE delivered_at IS NULL AND gave_up_at IS NULL)  -- hashed
     ORDER BY j.finished_at LIMIT %(limit)s)
    UNION ALL
    (SELECT j.id, j.finished_at FROM callboard.jobs AS j
     WHERE j.finished_at IS NOT NULL AND j.deleted_at IS NULL AND j.parent_id IS NULL
       AND j.keep IS NOT NULL AND callboard.expiry(j.finished_at, j.keep) < now()
       AND j.id NOT IN (SELECT job_id FROM callboard.callbacks WHERE delivered_at IS NULL AND gave_up_at IS NULL)  -- hashed
     ORDER BY callboard.expiry(j.finished_at, j.keep) LIMIT %(limit)s)
), due AS (
    SELECT j.id, j.stages FROM (SELECT * FROM expired ORDER BY finished_at) AS e CROSS JOIN LATERAL (
        SELECT j.id, j.stages FROM callboard.jobs AS j
        WHERE j.id = e.id AND j.deleted_at IS NULL
          AND (j.keep IS NULL AND j.finished_at < now() - make_interval(secs => %(keep)s::float8)
               OR j.keep IS NOT NULL AND callboard.expiry(j.finished_at, j.keep) < now())
        OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED
    ) AS j LIMIT %(limit)s
), stages AS (
    -- Looked up by parent: otherwise all jobs may be compared with each. A condition that matches an index of ended jobs
    -- would make the planner read all of these for each parent, if it expects only few.
    SELECT s.parent_id FROM due CROSS JOIN LATERAL (
        SELECT parent_id FROM callboard.jobs AS s
        WHERE s.parent_id = due.id AND coalesce(s.finished_at, 'infinity') < 'infinity' OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED
    ) AS s
)
-- Hashed, as above, whatever the planner estimates: a count per job would read all stages for each.
SELECT id FROM due WHERE stages IS NULL OR (id, stages) IN (SELECT parent_id, count(*) FROM stages GROUP BY parent_id)

-- name: deleted_jobs
-- Jobs whose rows must be deleted; with `aside`, also those that are set aside. Caller: the sweep, `callboard purge`.
-- Rows: (id).
SELECT id FROM callboard.jobs
WHERE deleted_at IS NOT NULL AND (%(aside)s OR deletion_after IS NULL OR deletion_after < now()) ORDER BY id

-- name: with_stages
-- These jobs and their stages. Caller: `callboard purge`. Rows: (id, whether it is no stage).
SELECT id, parent_id IS NULL FROM callboard.jobs WHERE id = ANY (%(jobs)s) OR parent_id = ANY (%(jobs)s) ORDER BY id

-- name: set_aside
-- Set a deleted job aside whose rows can't be deleted, because a row of another table refers to it, or a row is locked:
-- other jobs are deleted first. Caller: retention.delete_rows. Lock order: one job, for which it waits `lock_wait` seconds
-- at most.
UPDATE callboard.jobs SET deletion_after = now() + make_interval(secs => %(pause)s), reason = %(reason)s
FROM (SELECT set_config('lock_timeout', concat(%(lock_wait)s::float8 * 1000, 'ms'), true)) AS limited
WHERE id = %(job)s AND deleted_at IS NOT NULL

-- name: jobs_set_aside
-- Why these jobs could not be deleted. Caller: `callboard purge`. Rows: (id, reason).
SELECT id, reason FROM callboard.jobs
WHERE id = ANY (%(jobs)s) AND deleted_at IS NOT NULL AND deletion_after IS NOT NULL ORDER BY id

-- name: deletion_progress
-- How many items of a deleted job are deleted. Items are numbered from 0, without gaps, up to its total.
-- Caller: retention.delete_rows. Rows: (deleted_below, total); none: the job's row is deleted. Lock order: one job, in a
-- transaction of its own, to detect a locked row before anything is deleted. It waits `lock_wait` seconds at most.
SELECT deleted_below, total
FROM callboard.jobs, (SELECT set_config('lock_timeout', concat(%(lock_wait)s::float8 * 1000, 'ms'), true)) AS limited
WHERE id = %(job)s AND deleted_at IS NOT NULL FOR NO KEY UPDATE OF jobs

-- name: delete_old_workers
-- Delete workers that ended long ago. Guard: they have no items to rescue.
-- Caller: the sweep, `callboard purge`. Rows: none, counted.
DELETE FROM callboard.workers AS w
WHERE w.id = ANY (ARRAY(
    SELECT o.id FROM callboard.workers AS o
    WHERE coalesce(o.stopped_at, o.died_at) < now() - make_interval(secs => %(keep)s::float8)
      AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.worker = o.id)
    ORDER BY coalesce(o.stopped_at, o.died_at) LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))

-- name: delete_ended_tokens
-- Delete some invalid tokens. Caller: the sweep, `callboard purge`. Rows: none, counted.
DELETE FROM callboard.tokens WHERE id = ANY (ARRAY(
    SELECT id FROM callboard.tokens WHERE least(revoked_at, expires_at) <= now()
    ORDER BY least(revoked_at, expires_at) LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))

-- name: merge_totals
-- Merge the totals of ended jobs into one row per actor, queue and state; several processes may do so at once. Caller: the
-- sweep, `callboard purge`. Rows: none. Lock order: rows of this table, without waiting for any.
WITH several AS (
    SELECT actor, queue, coalesce(state::text, '') AS state FROM callboard.totals GROUP BY 1, 2, 3 HAVING count(*) > 1
), deleted AS (
    DELETE FROM callboard.totals WHERE id = ANY (ARRAY(
        SELECT t.id FROM callboard.totals AS t
        WHERE (t.actor, t.queue, coalesce(t.state::text, '')) IN (SELECT actor, queue, state FROM several)
        ORDER BY t.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )) RETURNING *
)
INSERT INTO callboard.totals (jobs, succeeded, failed, skipped, retries, crashes, state, actor, queue)
SELECT sum(jobs), sum(succeeded), sum(failed), sum(skipped), sum(retries), sum(crashes), state, actor, queue
FROM deleted GROUP BY state, actor, queue

-- name: delete_old_tombstones
-- Forget jobs that were deleted so long ago that none of their messages is left. Caller: the sweep, `callboard purge`.
DELETE FROM callboard.deleted_jobs WHERE deleted_at < now() - make_interval(secs => %(after)s)

-- name: delete_items
-- Delete a range of a deleted job's items. It waits for outcomes that are being recorded: the next statement in the same
-- transaction, delete_item_rows, sees the rows that these add. Later outcomes find no item.
-- Caller: retention.delete_rows. Rows: one, (items deleted, items found): a user's trigger may keep some.
-- Lock order: items by key. The transaction waits only briefly for a lock: users' rows may refer to an item, and their
-- transactions may be long.
WITH held AS (
    SELECT job_id, item FROM callboard.items
    WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
    ORDER BY item FOR UPDATE
), deleted AS (
    DELETE FROM callboard.items AS i USING held AS h WHERE i.job_id = h.job_id AND i.item = h.item RETURNING i.item
)
SELECT (SELECT count(*) FROM deleted), (SELECT count(*) FROM held)

-- name: delete_item_rows
-- Delete the rows that belong to a range of deleted items. Every table whose rows have a job_id and an item is here, except
-- `errors`, whose item is an example; a test checks this. Caller: retention.delete_rows, after delete_items.
-- Rows: none. Lock order: other transactions lock more than one of these rows only after they locked the item.
WITH r AS (
    DELETE FROM callboard.results WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
), a AS (
    DELETE FROM callboard.attempts WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
), h AS (
    DELETE FROM callboard.running WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
), l AS (
    DELETE FROM callboard.lanes WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
)
DELETE FROM callboard.outbox WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s

-- name: save_deletion_progress
-- All items of a deleted job below this number are deleted. Caller: retention.delete_rows, in the transaction that deletes
-- them. Lock order: items by key, then jobs by id.
UPDATE callboard.jobs SET deleted_below = greatest(deleted_below, %(high)s) WHERE id = %(job)s AND deleted_at IS NOT NULL

-- name: lock_deleted_job
-- Lock a deleted job, before its last rows are deleted. Caller: retention.delete_rows.
-- Rows: (whether all of its items are deleted); none: the job's row is deleted. An outcome with children adds to the total
-- under this lock, and without items there are no outcomes. Waits for locks like delete_items.
SELECT deleted_below >= total FROM callboard.jobs WHERE id = %(job)s AND deleted_at IS NOT NULL FOR UPDATE

-- name: delete_job_rows
-- Delete the last rows of a deleted job, including its own. Every table whose rows have a job_id and no item of their own is
-- here; a test checks this. Guard: lock_deleted_job. Caller: retention.delete_rows.
WITH e AS (
    DELETE FROM callboard.errors WHERE job_id = %(job)s
), s AS (
    DELETE FROM callboard.samples WHERE job_id = %(job)s
), a AS (
    DELETE FROM callboard.actions WHERE job_id = %(job)s
), c AS (
    DELETE FROM callboard.callbacks WHERE job_id = %(job)s
), t AS (
    DELETE FROM callboard.turns WHERE job_id = %(job)s
), l AS (
    DELETE FROM callboard.send_leases WHERE job_id = %(job)s
), shared AS (
    DELETE FROM callboard.tokens WHERE job_id = %(job)s
)
DELETE FROM callboard.jobs WHERE id = %(job)s AND deleted_at IS NOT NULL
