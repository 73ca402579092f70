-- retry_ended: items that ended without success get another attempt, published in their job's turn.
-- Transition: failed | skipped -> waiting (next attempt), cancelled -> waiting. Guard: the state and the attempt, as locked.
-- Messages of what was cancelled may lie in RabbitMQ still, so those are suspect.
-- A first message that ran before its publisher settled it counts as published, for settling will not find it.
-- Their attempts stay: that they were given another is seen by the item's, which is higher now. Writing it into each,
-- with its traceback, took half of the time. Their deaths are forgotten, or the next would be their last.
-- Caller: controls.retry. Rows: one, what the job's counters lose or gain.
-- Sets of items are joined by their job, too, though it is one, and the guard stands beside the join: what the planner
-- takes for a job that it doesn't know, or for a state that no item was in, is one row, compared with all others.
-- Lock order: items by key, then their outbox rows; the job before its errors, as in a flush.
-- `held`: the items are locked, and jobs too (lock_retried): what ended since then and somebody has in hand is waited for
-- by none, and left as it is.
-- Who adds a row to the outbox of an item that is over has the item or its job locked. Should one come all the same,
-- the unique key refuses it, and controls.retry begins anew: no row needs the two steps of an ON CONFLICT.
WITH chosen AS (
    SELECT a.job_id, a.item, a.attempt FROM callboard.attempts AS a
    WHERE a.job_id = %(job)s AND NOT a.retried
      AND (%(items)s::int[] IS NULL OR a.item = ANY (%(items)s::int[]))
      AND (%(error_type)s::text IS NULL OR %(error_type)s IN (a.error_type, regexp_replace(a.error_type, '^.*[.]', '')))
    UNION ALL
    SELECT i.job_id, i.item, i.attempt FROM callboard.items AS i
    WHERE i.job_id = %(job)s AND i.state = 'cancelled' AND 'cancelled' = ANY (%(states)s::text[])
      AND (%(items)s::int[] IS NULL OR i.item = ANY (%(items)s::int[])) AND %(error_type)s::text IS NULL
), waited AS (
    SELECT i.job_id, i.item, i.crashes, i.state, i.attempt = c.attempt AS still
    FROM chosen AS c JOIN callboard.items AS i ON i.job_id = c.job_id AND i.item = c.item
    WHERE NOT %(held)s
    ORDER BY i.item FOR NO KEY UPDATE OF i
), at_once AS (
    SELECT i.job_id, i.item, i.crashes, i.state, i.attempt = c.attempt AS still
    FROM chosen AS c JOIN callboard.items AS i ON i.job_id = c.job_id AND i.item = c.item
    WHERE %(held)s
    FOR NO KEY UPDATE OF i SKIP LOCKED
), ended AS MATERIALIZED (
    SELECT job_id, item, crashes FROM (SELECT * FROM waited UNION ALL SELECT * FROM at_once) AS locked
    WHERE still AND state IN ('failed', 'skipped', 'cancelled') AND state::text = ANY (%(states)s::text[])
), moved AS (
    UPDATE callboard.items AS i
    SET was = i.state, state = 'waiting', attempt = i.attempt + (i.state <> 'cancelled')::int,
        crashes = 0, finished_at = NULL, retry_options = NULL
    FROM ended AS e WHERE i.job_id = e.job_id AND i.item = e.item
    RETURNING i.job_id, i.item, i.attempt, i.was, e.crashes
), retried AS (
    SELECT a.kind, a.error_type, a.place, count(*) AS count
    FROM moved AS m
    JOIN callboard.attempts AS a ON a.job_id = m.job_id AND a.item = m.item AND a.attempt = m.attempt - 1
    WHERE m.was <> 'cancelled'
    GROUP BY 1, 2, 3
), locked AS (
    SELECT j.id FROM callboard.jobs AS j CROSS JOIN (SELECT count(*) FROM moved) AS m  -- these first
    WHERE j.id = %(job)s FOR NO KEY UPDATE OF j
), regrouped AS (
    UPDATE callboard.errors AS e SET failed = e.failed - r.count
    FROM retried AS r CROSS JOIN locked
    WHERE e.job_id = %(job)s AND e.kind = r.kind AND e.error_type = r.error_type AND e.place = r.place
      AND r.kind <> 'skipped'
), lying AS (
    SELECT o.item, o.redo, o.first FROM callboard.outbox AS o JOIN moved USING (job_id, item)
    ORDER BY o.item FOR UPDATE OF o
), again AS (
    UPDATE callboard.outbox AS o
    SET id = DEFAULT, attempt = m.attempt, due_at = 'infinity', options = NULL, sent_ms = NULL,
        first = false, suspect = m.was = 'cancelled', claimed_until = NULL, dead = false, redo = true
    FROM moved AS m
    WHERE o.job_id = m.job_id AND o.item = m.item AND (SELECT count(*) FROM lying) >= 0  -- these first
), sent AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect, redo)
    SELECT m.job_id, m.item, m.attempt, 'infinity', false, m.was = 'cancelled', true
    FROM moved AS m WHERE m.item NOT IN (SELECT item FROM lying)  -- hashed, however wrong the planner's guess is
)
SELECT count(*) FILTER (WHERE was = 'failed') AS failed, count(*) FILTER (WHERE was = 'skipped') AS skipped,
       count(*) FILTER (WHERE was = 'cancelled') AS cancelled, coalesce(sum(crashes), 0)::bigint AS crashes,
       (SELECT coalesce(sum(count), 0)::bigint FROM retried) AS retries,
       count(*) - (SELECT count(*) FILTER (WHERE redo) FROM lying) AS redo,
       (SELECT count(*) FILTER (WHERE first) FROM lying) AS published
FROM moved
