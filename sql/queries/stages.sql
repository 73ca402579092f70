-- name: create_parent
-- A job of stages, or the one that has this key already. Its limits but for `keep` are words only: they
-- hold for its stages. Caller: stages.create. Rows: one, (id, created, asked).
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
-- The stages of a job, in order. Caller: stages.list_stages, which mostly has the parent locked: then none that is over
-- is opened meanwhile. Rows: StageRow.
SELECT id, stage, name, on_failure, state::text, stopping IS NOT NULL, finished_at IS NOT NULL,
       sealed, total, consumed, failed, reason, started_at, maker IS NOT NULL, digest,
       NOT sealed AND finished_at IS NULL AND coalesce(submitting_until > now(), false)
FROM callboard.jobs WHERE parent_id = %(parent)s ORDER BY stage

-- name: parents_to_update
-- Open jobs of stages that have yet to follow a change of a stage. The changes of others are forgotten: who opens one
-- again opens a stage of it, too. Caller: stages.update_parents. Rows: (id).
WITH gone AS (
    DELETE FROM callboard.stage_changes AS c
    WHERE NOT EXISTS (SELECT FROM callboard.jobs AS p WHERE p.id = c.parent_id AND p.finished_at IS NULL OFFSET 0)
)
SELECT DISTINCT parent_id FROM callboard.stage_changes ORDER BY parent_id

-- name: forget_stage_changes
-- A job of stages is about to follow all changes of them that are seen from now on.
-- Caller: stages.update_parents, under its lock.
DELETE FROM callboard.stage_changes WHERE parent_id = %(parent)s

-- name: mark_stages_to_make
-- The stage before each of these is completed. Caller: stages.update_parent, under the parent's lock.
UPDATE callboard.jobs SET to_make = true WHERE id = ANY (%(stages)s) AND NOT to_make

-- name: try_lock_parent
-- The lock of a job of stages, if nobody has it: a heartbeat must not wait for who retries a million items.
-- Caller: stages.update_parents. Rows: (id); none: somebody has it; the next look comes soon.
SELECT id FROM callboard.jobs WHERE id = %(parent)s AND finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED

-- name: start_parent
-- One of its stages has begun. Transition: pending -> running. Caller: stages.update_parent, under its lock.
UPDATE callboard.jobs SET state = 'running', started_at = %(started)s, updated_at = now()
WHERE id = %(parent)s AND state = 'pending' AND finished_at IS NULL

-- name: lock_parent
-- Whoever changes the state of a job of stages, or opens one of its stages that is over, has this lock. No
-- flush takes it, so it may be held while items are locked. Caller: stages.lock_parent.
-- Rows: (state, stopping, over); none: no such job of stages. Lock order: before all others.
SELECT state::text, stopping::text, finished_at IS NOT NULL FROM callboard.jobs
WHERE id = %(parent)s AND stages IS NOT NULL FOR NO KEY UPDATE

-- name: end_parent
-- None of its stages is open any more. Transition: open -> completed | failed | cancelled.
-- The only statement that makes a job of stages final.
-- Guard: still open. Caller: stages.update_parent, under its lock.
UPDATE callboard.jobs
SET state = %(state)s::callboard.job_state, sealed = sealed OR %(state)s = 'completed', stopping = NULL,
    finished_at = now(), updated_at = now()
WHERE id = %(parent)s AND finished_at IS NULL

-- name: claim_stage
-- The next stage whose items are to be made, for a worker that has its actor.
-- Guard: open, neither paused nor being stopped nor made; the stage before is completed, and what failed of it stops
-- nothing; nobody makes it, or a worker that is dead does, or this one did until the database was away.
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
-- Whether a worker is still the one that makes a stage; the row stays locked to the end of the transaction.
-- Guard: open, neither paused nor being stopped nor sealed; and the stage before is completed: a claim that began before
-- items of that were given another attempt did not see it, and from the claim on a retry leaves them alone.
-- Caller: stages.holds_claim. Rows: (id); none: it is to end.
SELECT s.id FROM callboard.jobs AS s
WHERE s.id = %(job)s AND s.maker = %(worker)s AND NOT s.sealed AND s.finished_at IS NULL AND s.stopping IS NULL AND s.state <> 'paused'
  AND EXISTS (SELECT FROM callboard.jobs AS b
              WHERE b.parent_id = s.parent_id AND b.stage = s.stage - 1 AND b.state = 'completed')
FOR NO KEY UPDATE OF s

-- name: release_stage
-- A worker makes a stage no more. Guard: it did. Caller: stages.release_claim.
UPDATE callboard.jobs SET maker = NULL, updated_at = now() WHERE id = %(job)s AND maker = %(worker)s

-- name: stage_results
-- A page of a stage's items in these states, with their results, by item: `limit` at most, and as many as have `bytes`, one at
-- least. Caller: stages.results_page. Rows: (item, args, state, result, why it is not kept).
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
