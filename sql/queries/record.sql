-- name: record
-- Record outcomes, and everything that belongs to them, in one statement and so in one transaction.
-- Transition: items waiting | retrying -> succeeded | failed | skipped | retrying (next attempt); a job whose last item
-- ended -> completed, or failed if it exceeded its max_failures.
-- Guard: the row still has the attempt that ended and is not final, checked under its lock (`state_before`).
-- The crashes that were charged to an item are dropped when it ends normally: another item caused them, or the cause passed.
-- Caller: the journal's flush; the rescue. Events are sorted by (job, item), at most one per item.
-- Rows: the changed jobs, with their new state. An event without effect was stale or a repetition, and is not counted.
-- Lock order: items by key (`locked_items`), then jobs by id (`counted`), then rows in `running` by key.
-- Waits for a lock for LOCK_WAIT_SECONDS at most (deadlocks are found after 1 s): a session that locks a row of one job for
-- longer must not delay the other jobs.
-- Columns that only some events use come as arrays of the same length, or as empty arrays, which unnest fills with NULL (so
-- false may be NULL): a join of them with `moved`, whose size the planner can't estimate, would be a nested loop.
-- The guard is a column beside the join, not a join condition: for a state that no item had at the last ANALYZE, the
-- planner expects one row, and would compare thousands of events with each.
WITH event AS (
    SELECT e.*, coalesce(e.crashed, false)::int AS charged, %(now)s::float8 - e.ended AS age
    FROM {Event} AS e, {lock_wait}
), locked_items AS (
    -- In the order of their keys: without ORDER BY, a small table is locked in physical order, and flushes deadlock.
    SELECT e.*, i.state AS state_before, i.crashes AS crashes_before, i.attempt = e.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM event AS e JOIN callboard.items AS i ON i.job_id = e.job AND i.item = e.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
), moved AS (
    UPDATE callboard.items AS i
    SET state = e.state,
        attempt = i.attempt + (e.state = 'retrying')::int,
        crashes = CASE WHEN e.state = 'retrying' OR e.charged > 0 THEN nullif(coalesce(i.crashes, 0) + e.charged, 0) END,
        worker = e.worker,
        lease = NULL,
        started_at = now() - make_interval(secs => e.age + e.elapsed),
        finished_at = CASE WHEN e.state <> 'retrying' THEN now() - make_interval(secs => e.age) END,
        retry_options = CASE WHEN e.state = 'retrying' THEN coalesce(e.retry_options, i.retry_options) END
    FROM locked_items AS e
    WHERE i.job_id = e.job AND i.item = e.item AND e.open
    RETURNING i.job_id, i.item, i.queue, e.state_before, i.state, i.started_at, e.attempt, e.charged, e.dead, e.worker, e.age,
              coalesce(i.crashes, 0) - coalesce(e.crashes_before, 0) AS crashes,
              e.failure_kind AS kind, e.failure_error_type AS error_type, e.failure_place AS place, e.failure_pattern AS pattern,
              e.failure_message AS message, e.failure_traceback AS traceback, e.failure_traceback_size AS traceback_size,
              e.retry_delay, e.retry_options, e.retry_sent_ms, e.result, e.unkept
), new_group AS (
    SELECT g.job_id, g.kind, g.error_type, g.place, g.pattern, row_number() OVER (PARTITION BY g.job_id) AS nth
    FROM (SELECT DISTINCT job_id, kind, error_type, place, pattern FROM moved WHERE kind NOT IN ('skipped', 'postponed')) AS g
    WHERE NOT EXISTS (
        SELECT FROM callboard.errors AS e
        WHERE e.job_id = g.job_id AND e.kind = g.kind AND e.error_type = g.error_type AND e.place = g.place
          AND e.pattern = g.pattern OFFSET 0)
), beyond AS (
    -- The groups beyond MAX_ERROR_GROUPS of their job: they share the group with the empty pattern.
    SELECT job_id, kind, error_type, place, pattern
    FROM (
        SELECT g.*, max(CASE WHEN nth = 1 THEN (SELECT count(*) FROM callboard.errors AS e WHERE e.job_id = g.job_id) END)
                    OVER (PARTITION BY job_id) AS others
        FROM new_group AS g
    ) AS g
    WHERE nth + others > %(MAX_ERROR_GROUPS)s
), failure AS (
    SELECT m.*, m.state = 'retrying' AS retried, now() - make_interval(secs => m.age) AS ended_at,
           CASE WHEN ((job_id, kind, error_type, place, pattern) IN (SELECT * FROM beyond)) IS TRUE THEN ''
                ELSE coalesce(pattern, '') END AS error_group
    FROM moved AS m WHERE m.kind IS NOT NULL
), new_items AS (
    SELECT c.*, row_number() OVER (PARTITION BY c.job ORDER BY c.nth) AS place
    FROM {NewItem} AS c
    WHERE (((%(parent_job)s::bigint[])[c.nth], (%(parent)s::int[])[c.nth]) IN (SELECT job_id, item FROM moved)) IS TRUE
    -- hashed, not joined
), delta AS (
    SELECT job_id, sum(new_items)::bigint AS new_items, sum(retrying)::bigint AS retrying, sum(succeeded)::bigint AS succeeded,
           sum(failed)::bigint AS failed, sum(skipped)::bigint AS skipped, sum(retries)::bigint AS retries,
           sum(crashes)::bigint AS crashes, sum(unkept)::bigint AS unkept, min(first_start) AS first_start
    FROM (
        SELECT job_id, 0 AS new_items,
               count(*) FILTER (WHERE state = 'retrying') - count(*) FILTER (WHERE state_before = 'retrying') AS retrying,
               count(*) FILTER (WHERE state = 'succeeded') AS succeeded,
               count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'skipped') AS skipped,
               count(*) FILTER (WHERE state = 'retrying' AND kind IS DISTINCT FROM 'postponed') AS retries,
               sum(crashes) AS crashes, count(unkept) AS unkept,
               min(started_at) AS first_start
        FROM moved GROUP BY job_id
        UNION ALL
        SELECT job, count(*), 0, 0, 0, 0, 0, 0, 0, NULL FROM new_items GROUP BY job
    ) AS part
    GROUP BY job_id
), counted AS (
    -- Job by job, in the order of their ids: each function call sees what was committed while the last one waited for a lock.
    SELECT j.id, j.state, j.epoch, j.stopping, {is_limited} AS limited, j.total - d.new_items AS first_new_item
    FROM (SELECT * FROM delta ORDER BY job_id) AS d
    CROSS JOIN LATERAL callboard.count_outcomes(
        d.job_id, d.new_items, d.retrying, d.succeeded, d.failed, d.skipped, d.retries, d.crashes, d.unkept, d.first_start) AS j
), free AS (
    -- Ended items make room for others of their job, so a turn that was passed over is due again. A locked turn is skipped:
    -- a publisher is serving it, or another transaction adds to it.
    SELECT t.job_id, t.queue FROM counted AS c JOIN callboard.turns AS t ON t.job_id = c.id
    WHERE c.limited AND least(t.bulk_at, t.due_at) < 'infinity' FOR NO KEY UPDATE OF t SKIP LOCKED
), freed AS (
    UPDATE callboard.turns AS t
    SET seq = t.seq + 1,
        -- Whatever its time: this transaction may have begun before the one that postponed it.
        bulk_at = CASE WHEN t.bulk_at < 'infinity' THEN least(t.bulk_at, now()) ELSE t.bulk_at END,
        due_at = CASE WHEN t.due_at <= now() + make_interval(secs => %(TURN_PAUSE_SECONDS)s) THEN least(t.due_at, now()) ELSE t.due_at END
    FROM free AS f WHERE t.job_id = f.job_id AND t.queue = f.queue
), kept_attempts AS (
    INSERT INTO callboard.attempts
        (job_id, item, attempt, kind, retried, worker, started_at, ended_at,
         error_type, place, pattern, message, traceback, traceback_size)
    SELECT f.job_id, f.item, f.attempt, f.kind, f.retried, f.worker, f.started_at, f.ended_at,
           f.error_type, f.place, f.error_group, f.message, f.traceback, f.traceback_size
    FROM failure AS f
    ON CONFLICT DO NOTHING
), kept_errors AS (
    INSERT INTO callboard.errors AS e
        (job_id, kind, error_type, place, pattern, count, failed, first_at, last_at, item, message)
    SELECT f.job_id, f.kind, f.error_type, f.place, f.error_group, count(*), count(*) FILTER (WHERE NOT f.retried),
           min(f.ended_at), max(f.ended_at), (array_agg(f.item ORDER BY f.retried, f.item))[1],
           (array_agg(f.message ORDER BY f.retried, f.item))[1]
    FROM failure AS f
    WHERE f.kind NOT IN ('skipped', 'postponed') AND (f.job_id IN (SELECT id FROM counted)) IS TRUE  -- after `counted`
    GROUP BY f.job_id, f.kind, f.error_type, f.place, f.error_group
    ORDER BY f.job_id, f.kind, f.error_type, f.place, f.error_group
    ON CONFLICT (job_id, kind, error_type, place, pattern) DO UPDATE
    SET count = e.count + excluded.count,
        failed = e.failed + excluded.failed,
        item = CASE WHEN e.failed = 0 AND excluded.failed > 0 THEN excluded.item ELSE e.item END,
        message = CASE WHEN e.failed = 0 AND excluded.failed > 0 THEN excluded.message ELSE e.message END,
        last_at = greatest(e.last_at, excluded.last_at)
), kept_results AS (
    -- An item succeeds only once, so it has no result yet.
    INSERT INTO callboard.results (job_id, item, value, unkept)
    SELECT job_id, item, result, unkept FROM moved WHERE coalesce(result, unkept) IS NOT NULL
), messages AS (
    -- The message of the next attempt, or a dead letter. A dead letter is written if there is no message to reject: the
    -- last crash leaves none, and a message that carried several items is acknowledged.
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, options, sent_ms, first, suspect, dead)
    SELECT job_id, item, attempt + (state = 'retrying')::int, coalesce(queue, ''),
           now() + make_interval(secs => coalesce(retry_delay - age, 0)), retry_options, retry_sent_ms,
           false, true, state = 'failed'
    FROM moved WHERE state = 'retrying' OR state = 'failed' AND (charged > 0 OR dead)
    ON CONFLICT (job_id, item) DO UPDATE
    SET attempt = excluded.attempt, due_at = excluded.due_at, options = excluded.options,
        sent_ms = excluded.sent_ms, suspect = true, claimed_until = NULL, dead = excluded.dead
), children AS (
    INSERT INTO callboard.items (job_id, item, actor, queue, message_uuid, message_id, args, options, sent_at)
    SELECT b.job, c.first_new_item + b.place - 1, b.actor, b.queue, {message_ids}, b.args, b.options,
           to_timestamp(b.sent_ms / 1000.0)
    FROM new_items AS b JOIN counted AS c ON c.id = b.job
), childrens_messages AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, sent_ms, first)
    SELECT b.job, c.first_new_item + b.place - 1, 1, b.queue, now() + make_interval(secs => b.delay), b.sent_ms, true
    FROM new_items AS b JOIN counted AS c ON c.id = b.job
), ran AS (
    -- In the order of their keys, because the items of stale events are not locked. The row of a later attempt, which the
    -- same worker may be running, stays.
    SELECT g.*
    FROM unnest(%(ran_job)s::bigint[], %(ran_item)s::int[], %(ran_attempt)s::int[], %(ran_worker)s::int[])
         AS g (job_id, item, attempt, worker)
    JOIN callboard.running AS r
        ON r.job_id = g.job_id AND r.item = g.item AND r.attempt <= g.attempt AND r.worker = g.worker
    ORDER BY r.job_id, r.item FOR UPDATE OF r
), ended AS (
    DELETE FROM callboard.running AS r USING ran
    WHERE r.job_id = ran.job_id AND r.item = ran.item AND r.worker + 0 = ran.worker  -- by the key: many may have one worker
)
SELECT id, state::text, epoch, stopping IS NOT NULL, limited FROM counted
