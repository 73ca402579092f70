-- name: lock_stages
-- Lock the unmade stages, so that no worker begins to make one during a retry of the stage before; and the ended stages, in
-- order of id. Caller: retry, under the parent's lock. Lock order: jobs by id.
SELECT id FROM callboard.jobs
WHERE parent_id = %(parent)s AND (stage > 0 AND NOT sealed OR finished_at IS NOT NULL) ORDER BY id FOR NO KEY UPDATE

-- name: reopen_stages
-- Reopen stages of which nothing was made. Transition: failed | cancelled -> pending.
-- Guard: over, and without any item. Caller: retry, under the parent's lock. Lock order: jobs by id.
WITH unmade AS (
    SELECT id FROM callboard.jobs
    WHERE parent_id = %(parent)s AND stage > 0 AND NOT sealed AND consumed = 0 AND finished_at IS NOT NULL
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE callboard.jobs AS j
SET state = 'pending', reason = NULL, finished_at = NULL, maker = NULL, epoch = epoch + 1, control_at = clock_timestamp(),
    limits = CASE WHEN deadline < now() THEN limits - 'deadline' ELSE limits END,
    deadline = CASE WHEN deadline >= now() THEN deadline END, updated_at = now()
FROM unmade WHERE j.id = unmade.id

-- name: reopen_parent
-- Reopen a job of stages: items of its stages are retried, or stages that were never made are reopened.
-- Transition: completed | failed | cancelled -> pending | running. Guard: over. A deadline that passed is removed.
-- Caller: retry, under its lock.
UPDATE callboard.jobs
SET state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END::callboard.job_state,
    limits = CASE WHEN (limits ->> 'deadline')::timestamptz < now() THEN limits - 'deadline' ELSE limits END,
    reason = NULL, sealed = false, finished_at = NULL, updated_at = now()
WHERE id = %(parent)s AND finished_at IS NOT NULL

-- name: reopen_job
-- Items of a job are retried: update its counters, and reopen it if it was over; then it is sealed.
-- Transition: completed | failed | cancelled -> pending | running. Guard: over or open, as it was when the items were
-- chosen, and neither being stopped nor deleted. `whole`: the bulk range goes on at the watermark; otherwise all open items
-- are in the outbox. A deadline that passed is removed. A partly made stage is not sealed, because its making goes on.
-- Caller: retry. Rows: (id); none: the job changed meanwhile, roll back. Lock order: the job.
WITH reopened AS (
    UPDATE callboard.jobs AS j
    SET failed = failed - %(failed)s, skipped = skipped - %(skipped)s, cancelled = cancelled + %(rest)s - %(cancelled)s,
        retries = retries + %(retries)s, crashes = crashes - %(crashes)s, in_turn = %(in_turn)s + CASE WHEN %(over)s THEN 0 ELSE in_turn END,
        retrying = CASE WHEN %(over)s THEN 0 ELSE retrying END,
        published = CASE WHEN %(over)s AND NOT %(whole)s THEN total ELSE published + %(published)s END,
        watermark = CASE WHEN %(over)s AND NOT %(whole)s THEN CASE WHEN held THEN total ELSE bulk_end END ELSE watermark END,
        bulk_end = CASE WHEN %(over)s AND held THEN total ELSE bulk_end END,
        held = held AND NOT %(over)s,
        suspect_below = CASE WHEN %(over)s THEN greatest(suspect_below, watermark + 2 * %(PUBLISH_WINDOW_ITEMS)s) ELSE suspect_below END,
        publish_token = publish_token + %(over)s::int,
        publish_until = CASE WHEN NOT %(over)s THEN publish_until END,
        state = CASE WHEN NOT %(over)s THEN state WHEN started_at IS NULL THEN 'pending' ELSE 'running' END,
        reason = CASE WHEN NOT %(over)s THEN reason END,
        limits = CASE WHEN %(over)s AND deadline < now() THEN limits - 'deadline' ELSE limits END,
        deadline = CASE WHEN NOT %(over)s OR deadline >= now() THEN deadline END,
        sealed = sealed OR %(over)s AND coalesce(stage, 0) = 0,
        maker = CASE WHEN NOT %(over)s THEN maker END,
        finished_at = NULL,
        epoch = epoch + %(over)s::int,
        control_at = CASE WHEN %(over)s THEN clock_timestamp() ELSE control_at END,
        updated_at = now()
    WHERE id = %(job)s AND stopping IS NULL AND deleted_at IS NULL AND (finished_at IS NOT NULL) = %(over)s
    RETURNING id, actor, queue
), kept AS (
    INSERT INTO callboard.totals (actor, queue, succeeded, failed, skipped, retries, crashes)
    SELECT coalesce(actor, ''), coalesce(queue, ''), 0, %(failed)s, %(skipped)s, 0, %(crashes)s FROM reopened
    WHERE %(failed)s + %(skipped)s + %(crashes)s > 0
)
SELECT id FROM reopened

-- name: lock_retried_items
-- Lock the items that a retry may move, and the items of ended jobs whose messages it drops or sends: all of them before
-- the first job, as in the general lock order. All items of a job are read only if its counters show wanted items without
-- a row in `attempts`.
-- A failed attempt does not tell the current state of its item: a retry by hand does not mark it.
-- Caller: retry. Rows: one, unused: the count makes PostgreSQL lock all of them. Lock order: items by key.
WITH job AS (
    SELECT j.id, j.watermark, {open_items} > 0 AND j.id = ANY(%(over)s::bigint[]) AS goes_on,
           j.cancelled > 0 AND 'cancelled' = ANY(%(states)s::text[]) AS cancelled
    FROM callboard.jobs AS j WHERE j.id = ANY(%(jobs)s::bigint[])
), chosen AS (
    SELECT a.job_id, a.item, false AS any_state FROM callboard.attempts AS a
    WHERE a.job_id = ANY(%(jobs)s::bigint[]) AND NOT a.retried AND %(states)s::text[] && ARRAY['failed', 'skipped']
      AND (%(items)s::int[] IS NULL OR a.item = ANY(%(items)s::int[]))
    UNION ALL
    SELECT o.job_id, o.item, true FROM callboard.outbox AS o WHERE o.job_id = ANY(%(over)s::bigint[])
    UNION ALL
    SELECT j.id, i.item, true FROM job AS j CROSS JOIN LATERAL (
        SELECT i.item FROM callboard.items AS i
        WHERE i.job_id = j.id
          AND (i.state = 'cancelled' AND j.cancelled AND (%(items)s::int[] IS NULL OR i.item = ANY(%(items)s::int[]))
               OR i.state = 'retrying' AND j.goes_on
               OR i.state = 'waiting' AND j.goes_on
                  AND (NOT %(whole)s OR i.sent_at IS NOT NULL OR i.item < j.watermark))
        OFFSET 0
    ) AS i WHERE j.cancelled OR j.goes_on
), held AS (
    SELECT i.item FROM chosen AS c JOIN callboard.items AS i ON i.job_id = c.job_id AND i.item = c.item
    WHERE c.any_state OR i.state::text = ANY(%(states)s::text[])
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
)
SELECT count(*) FROM held

-- part: open_items
-- Items of the job `j` that are neither final nor have the state cancelled.
(j.total - j.succeeded - j.failed - j.skipped - j.cancelled)

-- name: lock_ended_job
-- Lock an ended job while its items are chosen. Caller: retry.
-- Rows: (watermark, items cancelled, how many of these do not have the state cancelled); none: it is open, or deleted.
SELECT j.watermark, j.total - j.succeeded - j.failed - j.skipped, {open_items} FROM callboard.jobs AS j
WHERE j.id = %(job)s AND j.finished_at IS NOT NULL AND j.deleted_at IS NULL FOR NO KEY UPDATE

-- name: cancel_rest
-- A stopped job goes on with some of its items; the other open items become cancelled.
-- Transition: waiting | retrying -> cancelled. Caller: retry, under the job's lock. Rows: none, counted.
-- The subquery makes the planner hash the numbers, whatever their count. A plain array would be scanned for each item by a
-- generic plan, and by PostgreSQL 14.
UPDATE callboard.items SET state = 'cancelled', finished_at = now(), retry_options = NULL
WHERE job_id = %(job)s AND state IN ('waiting', 'retrying') AND item NOT IN (SELECT unnest((SELECT %(keep)s::int[])))

-- name: reset_retrying
-- Items of a stopped job that waited for a retry are due at once. Transition: retrying -> waiting.
-- Caller: retry, under the job's lock.
UPDATE callboard.items SET state = 'waiting' WHERE job_id = %(job)s AND state = 'retrying'

-- name: clear_outbox
-- Delete the outbox messages of a stopped job, which a publisher may be publishing with the old epoch. Dead letters stay,
-- but no longer count as waiting for the turn.
-- Caller: retry, under the job's lock. Rows: one, how many of the deleted messages were the first of their items.
WITH dead AS (
    UPDATE callboard.outbox SET in_turn = false WHERE job_id = %(job)s AND dead AND in_turn
), deleted AS (
    DELETE FROM callboard.outbox WHERE job_id = %(job)s AND NOT dead RETURNING first
)
SELECT count(*) FILTER (WHERE first) FROM deleted

-- name: send_open_items
-- Queue the open items of a stopped job that the watermark will not publish. They are suspect, because RabbitMQ may still
-- have their messages. Caller: retry, under the job's lock. Rows: none, counted.
INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, first, suspect, in_turn)
SELECT i.job_id, i.item, i.attempt, coalesce(i.queue, ''), 'infinity', false, true, true FROM callboard.items AS i
WHERE i.job_id = %(job)s AND i.state = 'waiting' AND (i.sent_at IS NOT NULL OR i.item < %(below)s)
ORDER BY i.item

-- name: retry_ended_items
-- Items that ended without success get another attempt, published in their job's turn.
-- Transition: failed | skipped -> waiting (next attempt), cancelled -> waiting. Guard: the state and the attempt, as locked.
-- RabbitMQ may still have messages of cancelled items, so these are suspect.
-- A first message that ran before its publisher settled it counts as published, because settling will not find it.
-- Rows in `attempts` are not changed: an attempt was retried if the item's attempt is higher. To mark each of them, with
-- its traceback, took half of the time. Charged crashes are reset, so that the next crash is not the last.
-- Caller: retry. Rows: one, the changes of the job's counters.
-- Sets of items are joined by job, too, although it is one, and the guard is a column, not a join condition: for a job or
-- a state without statistics the planner expects one row, and would compare it with all others.
-- Lock order: items, which lock_retried_items has locked by key; then their outbox rows; the job before its errors, as in a
-- flush. An item that ended since then and that another transaction has locked is skipped: to wait for it with a lock of a
-- job could be a deadlock.
-- A transaction that adds an outbox row of an ended item has locked the item or its job. If a row is added in spite of
-- that, the unique key refuses this one, and the retry starts again. So no row needs the two steps of an ON CONFLICT.
WITH chosen AS (
    SELECT a.job_id, a.item, a.attempt FROM callboard.attempts AS a
    WHERE a.job_id = %(job)s AND NOT a.retried
      AND (%(items)s::int[] IS NULL OR a.item = ANY (%(items)s::int[]))
      AND (%(error)s::text IS NULL OR (a.kind, a.error_type, a.place, a.pattern) IN (
          SELECT e.kind, e.error_type, e.place, e.pattern FROM callboard.errors AS e
          WHERE e.job_id = %(job)s AND {is_error}))
    UNION ALL
    SELECT i.job_id, i.item, i.attempt FROM callboard.items AS i
    WHERE i.job_id = %(job)s AND i.state = 'cancelled' AND 'cancelled' = ANY (%(states)s::text[])
      AND (%(items)s::int[] IS NULL OR i.item = ANY (%(items)s::int[])) AND %(error)s::text IS NULL
), held AS (
    SELECT i.job_id, i.item, i.crashes, i.state, i.attempt = c.attempt AS still
    FROM chosen AS c JOIN callboard.items AS i ON i.job_id = c.job_id AND i.item = c.item
    FOR NO KEY UPDATE OF i SKIP LOCKED
), ended AS MATERIALIZED (
    SELECT job_id, item, state, crashes FROM held
    WHERE still AND state IN ('failed', 'skipped', 'cancelled') AND state::text = ANY (%(states)s::text[])
), moved AS (
    UPDATE callboard.items AS i
    SET state = 'waiting', attempt = i.attempt + (e.state <> 'cancelled')::int,
        crashes = NULL, finished_at = NULL, retry_options = NULL
    FROM ended AS e WHERE i.job_id = e.job_id AND i.item = e.item
    RETURNING i.job_id, i.item, i.attempt, i.queue, e.state AS state_before, e.crashes
), retried AS (
    SELECT a.kind, a.error_type, a.place, a.pattern, count(*) AS count
    FROM moved AS m
    JOIN callboard.attempts AS a ON a.job_id = m.job_id AND a.item = m.item AND a.attempt = m.attempt - 1
    WHERE m.state_before <> 'cancelled'
    GROUP BY 1, 2, 3, 4
), locked AS (
    SELECT j.id FROM callboard.jobs AS j CROSS JOIN (SELECT count(*) FROM moved) AS m  -- after `moved`
    WHERE j.id = %(job)s FOR NO KEY UPDATE OF j
), regrouped AS (
    -- The example is an item that failed for good, as long as there is one.
    UPDATE callboard.errors AS e
    SET failed = e.failed - r.count,
        (item, message) = (
            (SELECT a.item, a.message FROM callboard.attempts AS a
             CROSS JOIN LATERAL (
                 SELECT state, attempt FROM callboard.items AS i WHERE i.job_id = a.job_id AND i.item = a.item OFFSET 0
             ) AS i
             WHERE e.failed > r.count AND e.item IN (SELECT item FROM moved)
               AND a.job_id = e.job_id AND a.kind = e.kind AND a.error_type = e.error_type AND a.place = e.place
               AND a.pattern = e.pattern AND i.state = 'failed' AND i.attempt = a.attempt
               AND a.item NOT IN (SELECT item FROM moved)
             LIMIT 1)
            UNION ALL SELECT e.item, e.message LIMIT 1)
    FROM retried AS r CROSS JOIN locked
    WHERE e.job_id = %(job)s AND e.kind = r.kind AND e.error_type = r.error_type AND e.place = r.place
      AND e.pattern = r.pattern AND r.kind <> 'skipped'
), in_outbox AS (
    SELECT o.id, o.item, o.in_turn, o.first, m.attempt, m.state_before
    FROM callboard.outbox AS o JOIN moved AS m USING (job_id, item)
    ORDER BY o.item FOR UPDATE OF o
), again AS (
    -- Not joined with `moved`: `sent` runs first, so a plan for a tiny outbox would read the rows of all items for each item.
    UPDATE callboard.outbox AS o
    SET id = DEFAULT, attempt = b.attempt, due_at = 'infinity', options = NULL, sent_ms = NULL,
        first = false, suspect = b.state_before = 'cancelled', claimed_until = NULL, dead = false, in_turn = true
    FROM in_outbox AS b WHERE o.id = b.id
), sent AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, first, suspect, in_turn)
    SELECT m.job_id, m.item, m.attempt, coalesce(m.queue, ''), 'infinity', false, m.state_before = 'cancelled', true
    FROM moved AS m WHERE m.item NOT IN (SELECT item FROM in_outbox)  -- hashed, whatever the planner estimates
)
SELECT count(*) FILTER (WHERE state_before = 'failed') AS failed, count(*) FILTER (WHERE state_before = 'skipped') AS skipped,
       count(*) FILTER (WHERE state_before = 'cancelled') AS cancelled, coalesce(sum(crashes), 0)::bigint AS crashes,
       (SELECT coalesce(sum(count), 0)::bigint FROM retried) AS retries,
       count(*) - (SELECT count(*) FILTER (WHERE in_turn) FROM in_outbox) AS in_turn,
       (SELECT count(*) FILTER (WHERE first) FROM in_outbox) AS published
FROM moved WHERE (SELECT count(*) FROM locked) >= 0  -- the job is locked before its turns, which the outbox's trigger writes
