-- name: mark_deleted
-- Finished jobs are deleted: from now on nobody sees them, their keys are free, and their rows may go.
-- Their stages, which are over with them, go with them.
-- Guard: a job is over, as locked. Messages of what was cancelled may lie in RabbitMQ still: workers read of it for longer
-- than the job's row is there. Caller: actions.delete; the sweep and `callboard purge`, after expired_jobs.
-- Rows: (id), also of stages; none: see job_status. Lock order: jobs by id.
WITH whole AS (
    SELECT id FROM callboard.jobs
    WHERE id = ANY (%(jobs)s) AND finished_at IS NOT NULL AND deleted_at IS NULL AND parent_id IS NULL
    ORDER BY id FOR NO KEY UPDATE
), stages AS (
    -- By their ids, of which each is looked up: else all jobs may be compared with each.
    SELECT s.id FROM (
        SELECT s.id FROM whole CROSS JOIN LATERAL (
            SELECT id FROM callboard.jobs AS s WHERE s.parent_id = whole.id OFFSET 0
        ) AS s ORDER BY s.id
    ) AS one CROSS JOIN LATERAL (
        SELECT id FROM callboard.jobs AS s WHERE s.id = one.id AND s.finished_at IS NOT NULL OFFSET 0 FOR NO KEY UPDATE
    ) AS s
), marked AS (
    -- By an array: a row that changed while it was waited for is compared anew, and `IN (… UNION ALL …)` does not find it.
    UPDATE callboard.jobs AS j SET deleted_at = now(), key = NULL, standing_on = NULL
    WHERE j.id = ANY (ARRAY(SELECT id FROM whole UNION ALL SELECT id FROM stages))
    RETURNING j.*
), tombstones AS (
    INSERT INTO callboard.deleted_jobs (id, epoch) SELECT id, epoch FROM marked WHERE published > succeeded + failed + skipped
)
SELECT id FROM marked ORDER BY id

-- name: expired_jobs
-- Finished jobs whose time is over, some of them, the first to have ended first; locked until they are marked.
-- `keep`: seconds for which jobs are kept that don't say so themselves; NULL: for ever.
-- Guard: the job, as locked, is over and has been for so long, and whom it calls has been called.
-- Caller: the sweep, `callboard purge`. Rows: (id). Lock order: jobs, waiting for none.
-- One of which somebody has a stage in hand is looked at again.
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
    -- Looked up for each by its parent: else all jobs may be compared with each. A condition that an index of ended jobs
    -- has would let all of these be read for each, while the planner takes them for few.
    SELECT s.parent_id FROM due CROSS JOIN LATERAL (
        SELECT parent_id FROM callboard.jobs AS s
        WHERE s.parent_id = due.id AND coalesce(s.finished_at, 'infinity') < 'infinity' OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED
    ) AS s
)
-- Hashed, as above, however wrong the planner's guess is: counted for each, all stages were read for each.
SELECT id FROM due WHERE stages IS NULL OR (id, stages) IN (SELECT parent_id, count(*) FROM stages GROUP BY parent_id)

-- name: deleted_jobs
-- Jobs whose rows are to go; those that were set aside only if asked for. Caller: the sweep, `callboard purge`. Rows: (id).
SELECT id FROM callboard.jobs
WHERE deleted_at IS NOT NULL AND (%(aside)s OR deletion_after IS NULL OR deletion_after < now()) ORDER BY id

-- name: with_stages
-- These jobs and their stages. Caller: `callboard purge`. Rows: (id, whether it is no stage).
SELECT id, parent_id IS NULL FROM callboard.jobs WHERE id = ANY (%(jobs)s) OR parent_id = ANY (%(jobs)s) ORDER BY id

-- name: set_aside
-- A deleted job that can't be deleted, since a row of another table refers to it, or is locked: others go first.
-- Caller: retention.delete_rows. Lock order: one job, for which it waits `lock_wait` seconds at most.
UPDATE callboard.jobs SET deletion_after = now() + make_interval(secs => %(pause)s), reason = %(reason)s
FROM (SELECT set_config('lock_timeout', concat(%(lock_wait)s::float8 * 1000, 'ms'), true)) AS limited
WHERE id = %(job)s AND deleted_at IS NOT NULL

-- name: jobs_set_aside
-- Why these jobs could not be deleted. Caller: `callboard purge`. Rows: (id, reason).
SELECT id, reason FROM callboard.jobs
WHERE id = ANY (%(jobs)s) AND deleted_at IS NOT NULL AND deletion_after IS NOT NULL ORDER BY id

-- name: deletion_progress
-- How far the rows of a deleted job are gone. Items are numbered from 0, without gaps, up to its total.
-- Caller: retention.delete_rows. Rows: (deleted_below, total); none: it is gone. Lock order: one job, in a transaction of
-- its own: nothing need be deleted to learn that its row is locked. It waits `lock_wait` seconds at most.
SELECT deleted_below, total
FROM callboard.jobs, (SELECT set_config('lock_timeout', concat(%(lock_wait)s::float8 * 1000, 'ms'), true)) AS limited
WHERE id = %(job)s AND deleted_at IS NOT NULL FOR NO KEY UPDATE OF jobs

-- name: delete_old_workers
-- Worker processes that ended long ago. Guard: nothing of theirs waits to be rescued.
-- Caller: the sweep, `callboard purge`. Rows: none, counted.
DELETE FROM callboard.workers AS w
WHERE w.id = ANY (ARRAY(
    SELECT o.id FROM callboard.workers AS o
    WHERE coalesce(o.stopped_at, o.died_at) < now() - make_interval(secs => %(keep)s::float8)
      AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.worker = o.id)
    ORDER BY coalesce(o.stopped_at, o.died_at) LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))

-- name: delete_ended_tokens
-- Tokens that let nobody in any more, some of them. Caller: the sweep, `callboard purge`. Rows: none, counted.
DELETE FROM callboard.tokens WHERE id = ANY (ARRAY(
    SELECT id FROM callboard.tokens WHERE least(revoked_at, expires_at) <= now()
    ORDER BY least(revoked_at, expires_at) LIMIT %(limit)s FOR UPDATE SKIP LOCKED
))

-- name: merge_totals
-- What jobs that are over amount to becomes one row an actor, queue and state; others may do the same. Caller: the sweep,
-- `callboard purge`. Rows: none. Lock order: waits for none.
WITH several AS (
    SELECT actor, queue, coalesce(state::text, '') AS state FROM callboard.totals GROUP BY 1, 2, 3 HAVING count(*) > 1
), gone AS (
    DELETE FROM callboard.totals WHERE id = ANY (ARRAY(
        SELECT t.id FROM callboard.totals AS t
        WHERE (t.actor, t.queue, coalesce(t.state::text, '')) IN (SELECT actor, queue, state FROM several)
        ORDER BY t.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    )) RETURNING *
)
INSERT INTO callboard.totals (jobs, succeeded, failed, skipped, retries, crashes, state, actor, queue)
SELECT sum(jobs), sum(succeeded), sum(failed), sum(skipped), sum(retries), sum(crashes), state, actor, queue
FROM gone GROUP BY state, actor, queue

-- name: delete_old_tombstones
-- Jobs that were deleted so long ago that no message of theirs is left. Caller: the sweep, `callboard purge`.
DELETE FROM callboard.deleted_jobs WHERE deleted_at < now() - make_interval(secs => %(after)s)

-- name: delete_items
-- A stretch of a deleted job's items goes. An outcome that is being recorded is waited for: what it adds to
-- its item is seen by the next statement, delete_item_rows, in the same transaction. One that comes later finds no item.
-- Caller: retention.delete_rows. Rows: one, (how many are gone, how many were there): a trigger of the user's may keep some.
-- Lock order: items by key. The transaction waits for a lock for a moment only: rows of the user's may refer to an item, and
-- their transactions may be long.
WITH held AS (
    SELECT job_id, item FROM callboard.items
    WHERE job_id = %(job)s AND item >= %(low)s AND item < %(high)s
    ORDER BY item FOR UPDATE
), gone AS (
    DELETE FROM callboard.items AS i USING held AS h WHERE i.job_id = h.job_id AND i.item = h.item RETURNING i.item
)
SELECT (SELECT count(*) FROM gone), (SELECT count(*) FROM held)

-- name: delete_item_rows
-- What belongs to a stretch of items that are gone. Every table whose rows have a job_id and an item is
-- here, but for `errors`, whose item is an example; a test compares. Caller: retention.delete_rows, after delete_items.
-- Rows: none. Lock order: nobody else holds more than one of these rows without having held its item.
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
-- Every item of a deleted job below this one is gone. Caller: retention.delete_rows, in the transaction that
-- deletes them. Lock order: items by key, then jobs by id.
UPDATE callboard.jobs SET deleted_below = greatest(deleted_below, %(high)s) WHERE id = %(job)s AND deleted_at IS NOT NULL

-- name: lock_deleted_job
-- A deleted job, before its last rows go. Caller: retention.delete_rows.
-- Rows: (whether all of its items are gone); none: it is gone itself. An outcome that adds children adds to the total
-- under this lock, and none can come once the items are gone. Waits for locks as delete_items does.
SELECT deleted_below >= total FROM callboard.jobs WHERE id = %(job)s AND deleted_at IS NOT NULL FOR UPDATE

-- name: delete_job_rows
-- The last rows of a deleted job go, its own with them. Every table whose rows have a job_id and no item of
-- their own is here; a test compares. Guard: lock_deleted_job. Caller: retention.delete_rows.
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
