-- name: renew_lease
-- Renew the lease of the sweep. Guard: this process holds the lease, and it has not expired. If there is nothing to sweep,
-- the lease is released: then any process takes it after a `rest`, or as soon as there is work. Caller: the sweep.
-- Rows: one, Lease; none: the lease expired, and another process may have swept since.
UPDATE callboard.leases AS l
SET holder = CASE WHEN t.anything THEN l.holder ELSE '' END,
    until = now() + make_interval(secs => CASE WHEN t.anything THEN %(lease)s::float8 ELSE %(rest)s END)
FROM (SELECT ({anything_to_sweep}) AS anything, until FROM callboard.leases WHERE name = 'sweep') AS t
WHERE l.name = 'sweep' AND l.holder = %(holder)s AND l.until >= now()
RETURNING t.anything, {clock}, extract(epoch FROM t.until - now())::float8 - %(lease)s

-- part: anything_to_sweep
-- Whether there is work for the sweep that can't wait for some seconds.
EXISTS (SELECT FROM callboard.running)
OR EXISTS (SELECT FROM callboard.turns WHERE over)
OR EXISTS (SELECT FROM callboard.jobs
           WHERE deleted_at IS NOT NULL AND (deletion_after IS NULL OR deletion_after < now()))
OR EXISTS (SELECT FROM callboard.workers AS w WHERE stopped_at IS NULL AND died_at IS NULL AND {is_dead})
OR EXISTS (SELECT FROM callboard.jobs
           WHERE finished_at IS NULL
             AND (standing_on IS NULL OR sealed OR standing_on < (now() AT TIME ZONE 'UTC')::date
                  OR succeeded + failed + skipped + cancelled < total))

-- part: clock
-- The time of the database, in seconds.
extract(epoch FROM clock_timestamp())::float8

-- part: lease_holds
-- Whether a lease is valid. A lease that ends too late was taken before the clock was set back.
until BETWEEN now() AND now() + interval '1 minute'

-- name: acquire_lease
-- Take the lease of the sweep. Guard: no process holds the lease, or it has expired.
-- Caller: the sweep. Rows: one, Lease; none: another process sweeps.
INSERT INTO callboard.leases AS l (name, holder, until)
VALUES ('sweep', %(holder)s, now() + make_interval(secs => %(lease)s))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE NOT (l.{lease_holds}) OR l.holder = ''
RETURNING true, {clock},
          coalesce((SELECT extract(epoch FROM until - now())::float8 - CASE WHEN holder = '' THEN %(rest)s ELSE %(lease)s END
                    FROM callboard.leases WHERE name = 'sweep'), 0)

-- name: release_lease
-- Release the lease of the sweep. Caller: the sweep, when it stops.
DELETE FROM callboard.leases WHERE name = 'sweep' AND holder = %(holder)s

-- name: follow_clock_set_back
-- The clock of the database was set back by at least so many seconds. Future times that came from the clock become that much
-- earlier, so that nothing waits too long. A future heartbeat becomes now, so that a dead worker is detected.
-- A future last change of a job becomes earlier, so that its lost messages are found. So do future times of creation and
-- start of open jobs, which otherwise could end before they began. Samples with future times are deleted, because rates
-- and charts would be wrong. A claim ends no later than a claim that is made now: a claim that was made after the clock was
-- set back keeps its time, and unclaimed rows stay unclaimed.
-- Times that a user gave stay: a start, a deadline, a token's expiry. The `seq` of each turn changes, so that a publisher
-- that is serving the turn does not store old times.
-- Caller: the sweep, in the transaction that renews its lease. After an error the next round repeats all of this: it takes
-- the seconds from the lease.
-- Lock order: jobs by id, then turns by job; then rows of the outbox, running, callbacks and workers without waiting for any.
-- A message is changed only if its turn is locked: its update changes the turn, and must not wait. Each `count(*)` makes
-- PostgreSQL lock the rows of the part before first: otherwise it runs the parts in any order.
WITH back AS (
    SELECT make_interval(secs => %(seconds)s) AS time, now() + make_interval(secs => %(PUBLISH_LEASE_SECONDS)s) AS published,
           now() + make_interval(secs => %(SUBMISSION_LEASE_SECONDS)s) AS submitted,
           now() + make_interval(secs => %(MESSAGE_LEASE_SECONDS)s) AS sent,
           now() + make_interval(secs => %(WEBHOOK_LEASE_SECONDS)s) AS called
), job AS (
    SELECT id FROM callboard.jobs WHERE finished_at IS NULL ORDER BY id FOR NO KEY UPDATE
), turn AS (
    SELECT t.job_id, t.queue FROM callboard.turns AS t
    WHERE t.job_id IN (SELECT id FROM job) AND (SELECT count(*) FROM job) >= 0
    ORDER BY t.job_id, t.queue FOR NO KEY UPDATE OF t
), message AS (
    SELECT id FROM callboard.outbox
    WHERE (due_at > now() AND due_at < timestamptz '9999-01-01Z' OR claimed_until > now())
      AND (dead OR (job_id, queue) IN (SELECT job_id, queue FROM turn)) AND (SELECT count(*) FROM turn) >= 0
    FOR UPDATE SKIP LOCKED
), in_flight AS (
    SELECT job_id, item FROM callboard.running WHERE started_at > now() AND (SELECT count(*) FROM message) >= 0
    FOR UPDATE SKIP LOCKED
), callback AS (
    SELECT id FROM callboard.callbacks
    WHERE delivered_at IS NULL AND gave_up_at IS NULL AND greatest(due_at, claimed_until) > now()
      AND (SELECT count(*) FROM in_flight) >= 0
    FOR UPDATE SKIP LOCKED
), worker AS (
    SELECT id FROM callboard.workers
    WHERE stopped_at IS NULL AND died_at IS NULL AND beat_at > now() AND (SELECT count(*) FROM callback) >= 0
    FOR NO KEY UPDATE SKIP LOCKED
), jobs AS (
    UPDATE callboard.jobs AS j
    SET publish_until = CASE WHEN publish_until IS NOT NULL THEN least(publish_until, back.published) END,
        submitting_until = CASE WHEN submitting_until IS NOT NULL THEN least(submitting_until, submitted) END,
        rate_ready = rate_ready - time,
        control_at = CASE WHEN control_at IS NOT NULL THEN least(control_at, clock_timestamp()) END,
        updated_at = CASE WHEN updated_at > now() THEN updated_at - time ELSE updated_at END,
        created_at = CASE WHEN created_at > now() THEN created_at - time ELSE created_at END,
        started_at = CASE WHEN started_at > now() THEN started_at - time ELSE started_at END,
        not_before = CASE WHEN not_before > now() AND not_before = (holds -> '*' ->> 'until')::timestamptz
                          THEN not_before - time ELSE not_before END,
        holds = (SELECT jsonb_object_agg(h.key, h.value || jsonb_build_object(
                     'until', CASE WHEN u.until > now() THEN u.until - time ELSE u.until END))
                 FROM jsonb_each(holds) AS h CROSS JOIN LATERAL (SELECT (h.value ->> 'until')::timestamptz AS until) AS u)
    FROM job, back
    WHERE j.id = job.id
      AND (greatest(publish_until, submitting_until, control_at, rate_ready, updated_at, created_at, started_at) > now()
           OR holds IS NOT NULL)
), turns AS (
    UPDATE callboard.turns AS t
    SET served_at = served_at - time, bulk_at = bulk_at - time, due_at = due_at - time, seq = seq + 1
    FROM turn, back WHERE t.job_id = turn.job_id AND t.queue = turn.queue
), messages AS (
    UPDATE callboard.outbox AS o
    SET due_at = CASE WHEN due_at = timestamptz '9999-01-01Z' THEN due_at ELSE due_at - time END,
        claimed_until = CASE WHEN claimed_until IS NOT NULL THEN least(claimed_until, back.published) END
    FROM message, back WHERE o.id = message.id
), sends AS (
    UPDATE callboard.send_leases SET ends_at = back.published FROM back WHERE ends_at > back.published
), running AS (
    UPDATE callboard.running AS r SET started_at = started_at - time
    FROM in_flight AS f, back WHERE r.job_id = f.job_id AND r.item = f.item
), samples AS (
    DELETE FROM callboard.samples AS s USING job WHERE s.job_id = job.id AND s.taken_at > now()
), callbacks AS (
    UPDATE callboard.callbacks AS c
    SET due_at = due_at - time,
        claimed_until = CASE WHEN claimed_until IS NOT NULL
                             THEN least(claimed_until, CASE WHEN url IS NULL THEN sent ELSE called END) END
    FROM callback, back WHERE c.id = callback.id
)
UPDATE callboard.workers AS w SET beat_at = now() FROM worker WHERE w.id = worker.id

-- name: standing_jobs_to_seal
-- Standing jobs whose day (UTC) is over. Caller: the sweep. Rows: (id).
SELECT id FROM callboard.jobs
WHERE finished_at IS NULL AND NOT sealed AND standing_on < (now() AT TIME ZONE 'UTC')::date ORDER BY id

-- name: ended_turns
-- Ended jobs that still have turns, so perhaps messages and lanes; all of them unless it `writes`. After this statement, the
-- transaction uses only index scans, even of tables that the planner takes for tiny. Caller: the sweep. Rows: (id).
SELECT DISTINCT j.id FROM (SELECT job_id AS id FROM callboard.turns WHERE over) AS j,
       (SELECT set_config('enable_seqscan', 'off', true)) AS by_index
WHERE {of_page} ORDER BY j.id LIMIT CASE WHEN %(writes)s THEN %(DROP_BATCH_JOBS)s::int END

-- name: drop_messages_of_ended_jobs
-- Delete the unpublished messages of ended jobs; dead letters stay, to be published. The deleted messages count as
-- published, so that the number of items left to publish stays exact. For a job without such messages the lanes and turns
-- are deleted: none of its items is in flight.
-- Guard: the job, locked, is still over; messages that a publisher or a retry has locked are skipped. Caller: the sweep.
-- Rows: none. Lock order: jobs by id, then rows of the outbox without waiting for any, then lanes and turns. Waits for a
-- lock for LOCK_WAIT_SECONDS at most.
WITH over AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.id = ANY (%(jobs)s) AND j.finished_at IS NOT NULL
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), their_messages AS MATERIALIZED (
    SELECT o.id, over.id AS job_id FROM over CROSS JOIN LATERAL (
        -- Ordered, so that the planner uses the index of one job, whatever size it estimates.
        SELECT o.id FROM callboard.outbox AS o WHERE o.job_id = over.id AND NOT o.dead ORDER BY o.item LIMIT %(DROP_BATCH_MESSAGES)s
    ) AS o LIMIT %(DROP_BATCH_MESSAGES)s
), in_outbox AS (
    SELECT o.id FROM their_messages CROSS JOIN LATERAL (
        SELECT id FROM callboard.outbox AS o WHERE o.id = their_messages.id AND NOT o.dead OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS o
), deleted AS (
    DELETE FROM callboard.outbox AS o USING in_outbox WHERE o.id = in_outbox.id RETURNING o.job_id, o.first, o.in_turn
), clear AS (
    SELECT id FROM over WHERE id NOT IN (SELECT job_id FROM their_messages) AND (SELECT count(*) FROM their_messages) < %(DROP_BATCH_MESSAGES)s  -- hashed
), in_lanes AS (
    SELECT l.job_id, l.item FROM clear JOIN callboard.lanes AS l ON l.job_id = clear.id FOR UPDATE OF l SKIP LOCKED
), deleted_lanes AS (
    DELETE FROM callboard.lanes AS l USING in_lanes AS i WHERE l.job_id = i.job_id AND l.item = i.item
), deleted_turns AS (
    DELETE FROM callboard.turns AS t USING clear WHERE t.job_id = clear.id
)
UPDATE callboard.jobs AS j SET published = j.published + d.published, in_turn = j.in_turn - d.in_turn
FROM (
    SELECT job_id, count(*) FILTER (WHERE first) AS published, count(*) FILTER (WHERE in_turn) AS in_turn FROM deleted GROUP BY job_id
) AS d
WHERE j.id = d.job_id

-- name: end_frozen_copies
-- Terminate sessions of submitters whose COPY stands still while their job is locked. None of PostgreSQL's limits ends them:
-- while it waits for the rest of a COPY, it ignores cancellation. Guard: this role may terminate them. Caller: the sweep.
-- Rows: (pid).
SELECT pid FROM (
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND wait_event = 'ClientRead' AND query ~ '^COPY \S+[.]callboard_chunk|^COPY callboard[.]'
      AND query_start < clock_timestamp() - make_interval(secs => %(COPY_LIMIT_SECONDS)s) AND pg_has_role(usesysid, 'USAGE')
    OFFSET 0
) AS frozen WHERE pg_terminate_backend(pid)

-- name: analyze_grown_tables
-- Analyze tables that have grown far beyond their statistics. Guard: no other session is analyzing them. Never waits.
-- Caller: the sweep, each round; submit, after a large chunk. Rows: one, empty.
SELECT callboard.analyze_grown(NULL)

-- name: page_of_open_jobs
-- The end of the next page of open jobs. Caller: the sweep. Rows: one, (the last id; NULL: it is the last page).
SELECT CASE WHEN count(*) = %(limit)s THEN max(id) END
FROM (SELECT id FROM callboard.jobs WHERE finished_at IS NULL AND id > %(after)s ORDER BY id LIMIT %(limit)s) AS j

-- part: of_page
-- Whether the job `j` is in the page. Subqueries hide the limits from the planner: otherwise it would plan again for each
-- page.
j.id > (SELECT %(after)s::bigint) AND j.id <= (SELECT %(last)s::bigint)

-- name: sample_jobs
-- Add a sample for each open job of a page that changed since its last sample. Caller: the sweep.
WITH in_flight AS MATERIALIZED (
    SELECT r.job_id, {done_in_part} AS in_part FROM callboard.running AS r GROUP BY r.job_id
)
INSERT INTO callboard.samples (job_id, final, failed, in_part)
SELECT j.id, j.succeeded + j.failed + j.skipped, j.failed, coalesce(flight.in_part, 0)
FROM callboard.jobs AS j
LEFT JOIN LATERAL (
    SELECT s.final, s.in_part FROM callboard.samples AS s WHERE s.job_id = j.id ORDER BY s.taken_at DESC LIMIT 1
) AS last ON true
LEFT JOIN in_flight AS flight ON flight.job_id = j.id
WHERE j.finished_at IS NULL AND j.started_at IS NOT NULL AND {of_page}
  AND (last.final, last.in_part) IS DISTINCT FROM (j.succeeded + j.failed + j.skipped, coalesce(flight.in_part, 0))
ON CONFLICT DO NOTHING

-- name: open_jobs
-- The next open jobs by id, and whether published items of each have not ended: these are queued, held by a worker, or
-- lost. Caller: the search for lost messages. Rows: OpenJob; `quiet`: the job has not changed for a while.
SELECT id, watermark, bulk_end, total, updated_at < now() - make_interval(secs => %(quiet)s),
       stopping IS NULL AND state <> 'paused'
       AND published > succeeded + failed + skipped + cancelled + retrying + in_turn,
       {given_back}
FROM (SELECT * FROM callboard.jobs WHERE finished_at IS NULL AND id > %(after)s ORDER BY id LIMIT %(limit)s) AS j
ORDER BY id

-- part: given_back
-- A number that changes when published messages of the job `j` come back to be published again.
(SELECT coalesce(sum(t.given_back), 0)::bigint FROM callboard.turns AS t WHERE t.job_id = j.id)

-- part: held
-- The items of the jobs `job` that live workers held at their last heartbeat, or that run. Each array is unnested once.
held AS MATERIALIZED (
    SELECT h.job_id, h.item
    FROM callboard.workers AS w CROSS JOIN LATERAL unnest(w.held_jobs, w.held_items) AS h (job_id, item)
    WHERE w.stopped_at IS NULL AND w.died_at IS NULL AND h.job_id = ANY (%(job)s::bigint[])
    UNION ALL
    SELECT r.job_id, r.item FROM callboard.running AS r WHERE r.job_id = ANY (%(job)s::bigint[])
)

-- name: drop_unheld_running
-- Delete rows of `running` whose worker is alive and did not hold the item at its last heartbeat, long after the attempt
-- started. The outcome was committed and then lost, for example by a failover to a replica that was behind; the message was
-- acknowledged. Caller: the sweep. Lock order: rows of `running` without waiting for any.
WITH unheld AS (
    SELECT r.job_id, r.item FROM callboard.running AS r
    JOIN callboard.live_workers(%(DEAD_AFTER_SECONDS)s) AS w ON w.id = r.worker
    WHERE r.started_at < w.beat_at - make_interval(secs => %(DEAD_AFTER_SECONDS)s)
      AND NOT EXISTS (SELECT FROM unnest(w.held_jobs, w.held_items) AS h (job_id, item)
                      WHERE h.job_id = r.job_id AND h.item = r.item)
    FOR UPDATE OF r SKIP LOCKED
)
DELETE FROM callboard.running AS r USING unheld AS g WHERE r.job_id = g.job_id AND r.item = g.item

-- name: unheld_items
-- Published open items in ranges of jobs that no process is known to hold: not in the outbox, not in `running`, not held by
-- a live worker at its last heartbeat, and not being published under a lease. They are queued, or lost.
-- OFFSET 0: one lookup per row, whatever the planner estimates for a new job; most jobs have no rows in the outbox.
-- Caller: the search for lost messages. Rows: (job, item, attempt, queue), by job and item, at most `limit` per range.
WITH {held}
SELECT r.job_id, i.item, i.attempt, coalesce(i.queue, j.queue)
FROM unnest(%(job)s::bigint[], %(low)s::int[], %(high)s::int[]) AS r (job_id, low, high)
JOIN callboard.jobs AS j ON j.id = r.job_id
CROSS JOIN LATERAL (
    SELECT (SELECT o.item FROM callboard.outbox AS o WHERE o.job_id = r.job_id ORDER BY o.item LIMIT 1) AS first OFFSET 0
) AS o
CROSS JOIN LATERAL (
    SELECT i.item, i.attempt, i.queue FROM callboard.items AS i
    WHERE i.job_id = r.job_id AND i.item >= r.low AND i.item < r.high AND i.state = 'waiting'
      AND (i.sent_at IS NOT NULL OR i.item < j.watermark)
      AND (i.lease IS NULL OR i.lease NOT IN (SELECT id FROM callboard.send_leases))  -- hashed
      AND (i.job_id, i.item) NOT IN (SELECT job_id, item FROM held)  -- hashed
      AND (o.first IS NULL
           OR NOT EXISTS (SELECT FROM callboard.outbox AS o WHERE o.job_id = i.job_id AND o.item = i.item OFFSET 0))
    ORDER BY i.item LIMIT %(limit)s
) AS i
ORDER BY r.job_id, i.item

-- name: oldest_heartbeat_seconds
-- The age of the oldest heartbeat of a live worker. Caller: the search for lost messages.
-- Rows: one, (seconds); NULL: no worker is alive.
SELECT extract(epoch FROM now() - min(beat_at))::float8 FROM callboard.workers
WHERE stopped_at IS NULL AND died_at IS NULL

-- name: publish_mark
-- The items of open jobs that are not published yet: bulk items from `low` on (a publisher may be a window ahead of the
-- watermark), all items from `total` on, and all items of jobs with ids above `last`.
-- Caller: the search for lost messages. Rows: (job, low, total, last), the last changed jobs first.
SELECT id, CASE WHEN watermark + %(PUBLISH_WINDOW_ITEMS)s < bulk_end THEN watermark + %(PUBLISH_WINDOW_ITEMS)s ELSE total END, total,
       (SELECT max(id) FROM callboard.jobs)
FROM callboard.jobs WHERE finished_at IS NULL ORDER BY updated_at DESC LIMIT %(limit)s

-- name: passed_mark
-- Whether a queue has delivered a message that was published after a mark: then it has delivered all earlier ones. A few
-- items at several places are examined, because the next message after the mark may itself be lost.
-- Caller: the search for lost messages, for queues that keep the order. Rows: one, (yes or no).
WITH marked AS (
    SELECT * FROM unnest(%(job)s::bigint[], %(low)s::bigint[], %(total)s::bigint[]) AS m (job_id, low, total)
    UNION ALL
    (SELECT id, 0, 0 FROM callboard.jobs WHERE id > %(last)s ORDER BY id LIMIT 20)
    UNION ALL
    (SELECT id, 0, 0 FROM callboard.jobs WHERE id > %(last)s ORDER BY id DESC LIMIT 20)
)
SELECT EXISTS (
    SELECT FROM marked AS m
    JOIN callboard.jobs AS j ON j.id = m.job_id
    CROSS JOIN LATERAL (SELECT CASE WHEN j.watermark < j.bulk_end THEN j.watermark ELSE j.total END AS high) AS h
    CROSS JOIN generate_series(0, 7) AS nth
    CROSS JOIN LATERAL (
        SELECT * FROM callboard.items AS i
        WHERE i.job_id = m.job_id AND i.item >= m.low + (h.high - m.low) * nth / 8 AND i.item < h.high
        ORDER BY i.item LIMIT 3
    ) AS i
    WHERE h.high > m.low AND (i.sent_at IS NULL OR i.item >= m.total) AND coalesce(i.queue, j.queue) = %(queue)s
      AND (i.state NOT IN ('waiting', 'cancelled') OR i.attempt > 1
           OR EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item))
)

-- name: republish
-- The messages of these items are lost: publish them again, as suspect, because that is not certain.
-- Guard: the row still has that attempt and waits, and no process is known to hold it. `holder`: it still has the lease,
-- because a sweep may have been frozen, and another may have published them meanwhile. `given_back`: no message of the job
-- came back since the search read that number, because it may be one of these. `job`: a list of one, as `held` takes it.
-- Caller: the search for lost messages. Rows: (item).
-- Lock order: items by key without waiting for any, then their outbox rows and turns: the inner query locks one item at a
-- time, in the order of the outer query. Waits for a lock for LOCK_WAIT_SECONDS at most.
-- OFFSET 0 prevents a plan that reads all of a large job for a few thousand of its items.
WITH {held}
INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, first, suspect, resend)
SELECT i.job_id, i.item, i.attempt, coalesce(i.queue, ''), now(), false, true, true
FROM (SELECT l.* FROM unnest(%(item)s::int[], %(attempt)s::int[]) AS l (item, attempt), {lock_wait} ORDER BY item) AS l
CROSS JOIN LATERAL (
    SELECT job_id, item, attempt, queue, state FROM callboard.items AS i
    WHERE i.job_id = (%(job)s::bigint[])[1] AND i.item = l.item OFFSET 0 FOR NO KEY UPDATE SKIP LOCKED
) AS i
WHERE i.attempt = l.attempt AND i.state = 'waiting'
  AND (%(holder)s::text IS NULL OR EXISTS (
      SELECT FROM callboard.leases AS s WHERE s.name = 'sweep' AND s.holder = %(holder)s AND s.until >= now()))
  AND (%(given_back)s::bigint IS NULL OR EXISTS (
      SELECT FROM callboard.jobs AS j WHERE j.id = (%(job)s::bigint[])[1] AND {given_back} = %(given_back)s))
  AND (i.job_id, i.item) NOT IN (SELECT job_id, item FROM held)  -- hashed
ON CONFLICT (job_id, item) DO NOTHING
RETURNING item
