-- name: create_parent
-- Create a job of stages, or find the job with this key. Of its limits only `keep` has its own column: the others apply to
-- its stages. Caller: stages.create. Rows: one, (id, created, asked).
INSERT INTO callboard.jobs AS j (name, key, tenant, metadata, created_by, callbacks, asked, trace, limits, keep,
                                 stages)
VALUES (%(name)s, %(key)s, %(tenant)s, %(metadata)s::jsonb, %(created_by)s, %(callbacks)s::jsonb, %(asked)s::jsonb,
        %(trace)s::jsonb, %(limits)s::jsonb, %(keep)s, %(stages)s)
ON CONFLICT (tenant, key) WHERE key IS NOT NULL DO UPDATE SET key = j.key
RETURNING id, xmax = 0, asked

-- name: create_stages
-- The stages of a new job of stages, in its transaction. Caller: stages.create.
INSERT INTO callboard.jobs
    (parent_id, stage, name, actor, queue, makes, on_failure, chunk, held, tenant, created_by, {limits})
SELECT %(parent)s, s.nth - 1, s.name, s.actor, s.queue, s.makes, s.on_failure, s.chunk,
       %(held)s AND s.nth = 1, %(tenant)s, %(created_by)s, {limit_values}
FROM {PlannedStage} AS s ORDER BY s.nth

-- name: list_stages
-- The stages of a job, in order. Caller: stages.list_stages, which usually has the parent locked: then no ended stage is
-- reopened meanwhile. Rows: StageRow.
SELECT id, stage, name, on_failure, state::text, stopping IS NOT NULL, finished_at IS NOT NULL,
       sealed, total, consumed, failed, reason, started_at, maker IS NOT NULL, digest,
       NOT sealed AND finished_at IS NULL AND coalesce(submitting_until > now(), false)
FROM callboard.jobs WHERE parent_id = %(parent)s ORDER BY stage

-- name: parents_to_update
-- Open jobs of stages whose state must be updated after a change of a stage. The changes of ended jobs are deleted: to
-- reopen such a job also reopens one of its stages. Caller: stages.update_parents. Rows: (id).
WITH deleted AS (
    DELETE FROM callboard.stage_changes AS c
    WHERE NOT EXISTS (SELECT FROM callboard.jobs AS p WHERE p.id = c.parent_id AND p.finished_at IS NULL OFFSET 0)
)
SELECT DISTINCT parent_id FROM callboard.stage_changes ORDER BY parent_id

-- name: forget_stage_changes
-- Delete the recorded changes of a job's stages, before its state is updated from the stages.
-- Caller: stages.update_parents, under its lock.
DELETE FROM callboard.stage_changes WHERE parent_id = %(parent)s

-- name: mark_stages_to_make
-- The stage before each of these is completed. Caller: stages.update_parent, under the parent's lock.
UPDATE callboard.jobs SET to_make = true WHERE id = ANY (%(stages)s) AND NOT to_make

-- name: try_lock_parent
-- Lock a job of stages if it is unlocked: a heartbeat must not wait for a retry of a million items.
-- Caller: stages.update_parents. Rows: (id); none: another transaction has locked it; a later call updates it.
SELECT id FROM callboard.jobs WHERE id = %(parent)s AND finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED

-- name: start_parent
-- The first of its stages has begun. Transition: pending -> running. Caller: stages.update_parent, under its lock.
UPDATE callboard.jobs SET state = 'running', started_at = %(started)s, updated_at = now()
WHERE id = %(parent)s AND state = 'pending' AND finished_at IS NULL

-- name: lock_parent
-- The lock for changing the state of a job of stages, or reopening one of its ended stages. No flush takes it, so it may be
-- held while items are locked. Caller: stages.lock_parent.
-- Rows: (state, stopping, over); none: no such job of stages. Lock order: before all others.
SELECT state::text, stopping::text, finished_at IS NOT NULL FROM callboard.jobs
WHERE id = %(parent)s AND stages IS NOT NULL FOR NO KEY UPDATE

-- name: end_parent
-- All of its stages are over. Transition: open -> completed | failed | cancelled.
-- The only statement that makes a job of stages final.
-- Guard: still open. Caller: stages.update_parent, under its lock.
UPDATE callboard.jobs
SET state = %(state)s::callboard.job_state, sealed = sealed OR %(state)s = 'completed', stopping = NULL,
    finished_at = now(), updated_at = now()
WHERE id = %(parent)s AND finished_at IS NULL

-- name: claim_stage
-- Claim the next stage whose items must be made, for a worker that has its actor.
-- Guard: open, neither paused nor being stopped nor made; the stage before is completed, and its failed items, if any, do
-- not stop the job; no live worker makes it, except this one, which may have lost its connection meanwhile.
-- Caller: the stage maker. Rows: (job, name, parent, actor, makes, the stage before, inputs stored).
WITH next AS (
    SELECT s.id, b.id AS source FROM callboard.jobs AS s
    JOIN callboard.jobs AS b ON b.parent_id = s.parent_id AND b.stage = s.stage - 1
    JOIN callboard.jobs AS p ON p.id = s.parent_id
    WHERE p.stages IS NOT NULL AND p.finished_at IS NULL AND p.stopping IS NULL
      AND s.to_make AND s.finished_at IS NULL AND s.stopping IS NULL AND s.state <> 'paused' AND NOT s.sealed
      AND b.state = 'completed' AND (b.failed = 0 OR b.on_failure = 'go on')
      AND s.actor = ANY (%(actors)s) AND s.id <> ALL (%(at_work)s::bigint[])
      AND (s.maker IS NULL OR s.maker = %(worker)s
           OR NOT EXISTS (SELECT FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s) AS w WHERE w.id = s.maker))
    ORDER BY s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE callboard.jobs AS j SET maker = %(worker)s, updated_at = now()
FROM next WHERE j.id = next.id
RETURNING j.id, j.name, j.parent_id, j.actor, j.makes, next.source, j.consumed

-- name: lock_claimed_stage
-- Whether a worker still makes a stage; the row stays locked until the end of the transaction.
-- Guard: open, neither paused nor being stopped nor sealed; and the stage before is completed: a claim that began before a
-- retry of that stage's items did not see the retry. After a claim, a retry does not touch these items.
-- Caller: stages.holds_claim. Rows: (id); none: the worker must stop making it.
SELECT s.id FROM callboard.jobs AS s
WHERE s.id = %(job)s AND s.maker = %(worker)s AND NOT s.sealed AND s.finished_at IS NULL AND s.stopping IS NULL AND s.state <> 'paused'
  AND EXISTS (SELECT FROM callboard.jobs AS b
              WHERE b.parent_id = s.parent_id AND b.stage = s.stage - 1 AND b.state = 'completed')
FOR NO KEY UPDATE OF s

-- name: release_stage
-- A worker no longer makes a stage. Guard: it made it. Caller: stages.release_claim.
UPDATE callboard.jobs SET maker = NULL, updated_at = now() WHERE id = %(job)s AND maker = %(worker)s

-- name: stage_results
-- A page of a stage's items in these states, with their results, by item: at most `limit`, and about `bytes`, but at least
-- one. Caller: stages.results_page. Rows: (item, args, state, result, why it is not kept).
SELECT item, args, state, value, unkept FROM (
    SELECT i.item, i.args, i.state::text, v.value, v.unkept, sum(s.bytes) OVER (ORDER BY i.item) - s.bytes AS before
    FROM (
        SELECT job_id, item, args, state FROM callboard.items
        WHERE job_id = %(job)s AND item > %(after)s AND state::text = ANY (%(states)s) ORDER BY item LIMIT %(limit)s
    ) AS i
    LEFT JOIN LATERAL (
        SELECT * FROM callboard.results AS v WHERE v.job_id = i.job_id AND v.item = i.item OFFSET 0
    ) AS v ON true
    CROSS JOIN LATERAL (SELECT octet_length(i.args) + coalesce(octet_length(v.value), 0) AS bytes) AS s
) AS page
WHERE before < %(bytes)s ORDER BY item
