-- name: renew_lease
-- Stay the one that sweeps. Guard: the lease is this one's and has not lapsed. With nothing to sweep it is given up: then
-- anybody sweeps after a `rest`, or as soon as there is something. Caller: the sweep.
-- Rows: one, Lease; none: the lease lapsed, and somebody else may have swept since.
UPDATE callboard.leases AS l
SET holder = CASE WHEN t.anything THEN l.holder ELSE '' END,
    until = now() + make_interval(secs => CASE WHEN t.anything THEN %(lease)s::float8 ELSE %(rest)s END)
FROM (SELECT ({anything_to_sweep}) AS anything, until FROM callboard.leases WHERE name = 'sweep') AS t
WHERE l.name = 'sweep' AND l.holder = %(holder)s AND l.until >= now()
RETURNING t.anything, {clock}, extract(epoch FROM t.until - now())::float8 - %(lease)s

-- part: anything_to_sweep
-- Whether more is to be swept than what can wait for some seconds.
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
-- Whether a lease holds. One that ends later than any does was made before the clock was set back.
until BETWEEN now() AND now() + interval '1 minute'

-- name: acquire_lease
-- Become the one that sweeps. Guard: nobody holds the lease, or it lapsed.
-- Caller: the sweep. Rows: one, Lease; none: somebody else sweeps.
INSERT INTO callboard.leases AS l (name, holder, until)
VALUES ('sweep', %(holder)s, now() + make_interval(secs => %(lease)s))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE NOT (l.{lease_holds}) OR l.holder = ''
RETURNING true, {clock},
          coalesce((SELECT extract(epoch FROM until - now())::float8 - CASE WHEN holder = '' THEN %(rest)s ELSE %(lease)s END
                    FROM callboard.leases WHERE name = 'sweep'), 0)

-- name: release_lease
-- Somebody else may sweep. Caller: the sweep, when it stops.
DELETE FROM callboard.leases WHERE name = 'sweep' AND holder = %(holder)s

-- name: follow_clock_set_back
-- The clock of the database was set back by so many seconds, at least. A time to come that the clock gave becomes that much
-- earlier, so nothing waits longer than it should. A heartbeat that is to come becomes now, so a worker that died is found.
-- The last change of a job becomes earlier, so the lost messages of a job that does not move are found; and so does the
-- beginning of what is open, which else would end before. What was sampled later than now is deleted: a rate or a chart that
-- goes by it would be wrong. A claim holds for no longer than one that is made now: one that was made after the clock was set
-- back keeps its time, and what nobody has claimed stays so.
-- A time that somebody gave stays: of a start, a deadline, a token. The `seq` of each turn changes, so that a publisher that
-- looks at the turn in this moment does not store times of before.
-- Caller: the sweep, in the transaction that renews its lease. After an error the next round does all of this once more, for
-- it knows the seconds from the lease.
-- Lock order: jobs by id, then turns by job; then rows of the outbox, running, callbacks and workers without waiting for any.
-- A message moves only if its turn is locked: its update changes the turn, and must not wait. Each `count(*)` locks all that
-- come before: without it PostgreSQL runs the parts of this statement in an order of its own.
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
), flying AS (
    SELECT job_id, item FROM callboard.running WHERE started_at > now() AND (SELECT count(*) FROM message) >= 0
    FOR UPDATE SKIP LOCKED
), callback AS (
    SELECT id FROM callboard.callbacks
    WHERE delivered_at IS NULL AND gave_up_at IS NULL AND greatest(due_at, claimed_until) > now()
      AND (SELECT count(*) FROM flying) >= 0
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
    FROM flying AS f, back WHERE r.job_id = f.job_id AND r.item = f.item
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
-- Jobs that ended and have turns left, so perhaps messages and lanes; all of them unless it `writes`. The rest of the
-- transaction searches tables by their indexes, also one that the planner takes for tiny. Caller: the sweep. Rows: (id).
SELECT DISTINCT j.id FROM (SELECT job_id AS id FROM callboard.turns WHERE over) AS j,
       (SELECT set_config('enable_seqscan', 'off', true)) AS by_index
WHERE {of_page} ORDER BY j.id LIMIT CASE WHEN %(writes)s THEN %(DROP_BATCH_JOBS)s::int END

-- name: drop_messages_of_ended_jobs
-- What was to be published for jobs that are over never is; what waits for the dead
-- letters goes there. It counts as published, so that what is left to publish stays exact. Of a job without such messages
-- the lanes and turns are deleted: nothing of it is in flight.
-- Guard: the job, locked, is still over; what a publisher or a retry has in hand is left to it. Caller: the sweep.
-- Rows: none. Lock order: jobs by id, then rows of the outbox without waiting for any, then lanes and turns. Waits for a lock
-- for LOCK_WAIT_SECONDS at most.
WITH over AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.id = ANY (%(jobs)s) AND j.finished_at IS NOT NULL
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), theirs AS MATERIALIZED (
    SELECT o.id, over.id AS job_id FROM over CROSS JOIN LATERAL (
        -- In order, so that the planner takes the index, which is of one job, whatever it takes the job for.
        SELECT o.id FROM callboard.outbox AS o WHERE o.job_id = over.id AND NOT o.dead ORDER BY o.item LIMIT %(DROP_BATCH_MESSAGES)s
    ) AS o LIMIT %(DROP_BATCH_MESSAGES)s
), lying AS (
    SELECT o.id FROM theirs CROSS JOIN LATERAL (
        SELECT id FROM callboard.outbox AS o WHERE o.id = theirs.id AND NOT o.dead OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS o
), gone AS (
    DELETE FROM callboard.outbox AS o USING lying WHERE o.id = lying.id RETURNING o.job_id, o.first, o.in_turn
), clear AS (
    SELECT id FROM over WHERE id NOT IN (SELECT job_id FROM theirs) AND (SELECT count(*) FROM theirs) < %(DROP_BATCH_MESSAGES)s  -- hashed
), in_lanes AS (
    SELECT l.job_id, l.item FROM clear JOIN callboard.lanes AS l ON l.job_id = clear.id FOR UPDATE OF l SKIP LOCKED
), laneless AS (
    DELETE FROM callboard.lanes AS l USING in_lanes AS i WHERE l.job_id = i.job_id AND l.item = i.item
), turnless AS (
    DELETE FROM callboard.turns AS t USING clear WHERE t.job_id = clear.id
)
UPDATE callboard.jobs AS j SET published = j.published + d.published, in_turn = j.in_turn - d.in_turn
FROM (
    SELECT job_id, count(*) FILTER (WHERE first) AS published, count(*) FILTER (WHERE in_turn) AS in_turn FROM gone GROUP BY job_id
) AS d
WHERE j.id = d.job_id

-- name: end_frozen_copies
-- Sessions of submitters that stand still in a COPY, with their job locked. PostgreSQL ends them by no limit of its own: while
-- it waits for the rest of a COPY, it heeds no cancellation. Guard: this role may end them. Caller: the sweep. Rows: (pid).
SELECT pid FROM (
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'active' AND wait_event = 'ClientRead' AND query ~ '^COPY \S+[.]callboard_chunk|^COPY callboard[.]'
      AND query_start < clock_timestamp() - make_interval(secs => %(COPY_LIMIT_SECONDS)s) AND pg_has_role(usesysid, 'USAGE')
    OFFSET 0
) AS frozen WHERE pg_terminate_backend(pid)

-- name: analyze_grown_tables
-- The planner learns of tables that have grown far beyond their statistics. Guard: nobody is at it. Never waits.
-- Caller: the sweep, each round; submit, after a large chunk. Rows: none to read.
SELECT callboard.analyze_grown(NULL)

-- name: page_of_open_jobs
-- Where the next page of open jobs ends. Caller: the sweep. Rows: one, (the last id; NULL: it is the last page).
SELECT CASE WHEN count(*) = %(limit)s THEN max(id) END
FROM (SELECT id FROM callboard.jobs WHERE finished_at IS NULL AND id > %(after)s ORDER BY id LIMIT %(limit)s) AS j

-- part: of_page
-- Whether the job `j` is of the page. The planner does not see its ends: else it would plan anew for each page.
j.id > (SELECT %(after)s::bigint) AND j.id <= (SELECT %(last)s::bigint)

-- name: sample_jobs
-- A point for each open job of a page that moved since its last. Caller: the sweep.
WITH flying AS MATERIALIZED (
    SELECT r.job_id, {done_in_part} AS in_part FROM callboard.running AS r GROUP BY r.job_id
)
INSERT INTO callboard.samples (job_id, final, failed, in_part)
SELECT j.id, j.succeeded + j.failed + j.skipped, j.failed, coalesce(hand.in_part, 0)
FROM callboard.jobs AS j
LEFT JOIN LATERAL (
    SELECT s.final, s.in_part FROM callboard.samples AS s WHERE s.job_id = j.id ORDER BY s.taken_at DESC LIMIT 1
) AS last ON true
LEFT JOIN flying AS hand ON hand.job_id = j.id
WHERE j.finished_at IS NULL AND j.started_at IS NOT NULL AND {of_page}
  AND (last.final, last.in_part) IS DISTINCT FROM (j.succeeded + j.failed + j.skipped, coalesce(hand.in_part, 0))
ON CONFLICT DO NOTHING

-- name: open_jobs
-- The next open jobs by id, and whether something of each is published and has no end: then it lies in a queue, is held,
-- or is lost. Caller: the search for lost messages. Rows: OpenJob; `quiet`: the job has not moved for a while.
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
-- The items of the jobs `job` that live workers held at their last beats, or that run. Each array is unpacked once.
held AS MATERIALIZED (
    SELECT h.job_id, h.item
    FROM callboard.workers AS w CROSS JOIN LATERAL unnest(w.held_jobs, w.held_items) AS h (job_id, item)
    WHERE w.stopped_at IS NULL AND w.died_at IS NULL AND h.job_id = ANY (%(job)s::bigint[])
    UNION ALL
    SELECT r.job_id, r.item FROM callboard.running AS r WHERE r.job_id = ANY (%(job)s::bigint[])
)

-- name: drop_unheld_running
-- Rows of `running` whose worker lives and did not hold the item at its last beat, long after the attempt started. The
-- outcome was committed and is gone, as after a failover to a replica that was behind; the message is gone, too.
-- Caller: the sweep. Lock order: rows of `running` without waiting for any.
WITH gone AS (
    SELECT r.job_id, r.item FROM callboard.running AS r
    JOIN callboard.live_workers(%(DEAD_AFTER_SECONDS)s) AS w ON w.id = r.worker
    WHERE r.started_at < w.beat_at - make_interval(secs => %(DEAD_AFTER_SECONDS)s)
      AND NOT EXISTS (SELECT FROM unnest(w.held_jobs, w.held_items) AS h (job_id, item)
                      WHERE h.job_id = r.job_id AND h.item = r.item)
    FOR UPDATE OF r SKIP LOCKED
)
DELETE FROM callboard.running AS r USING gone AS g WHERE r.job_id = g.job_id AND r.item = g.item

-- name: unheld_items
-- Published items of stretches of jobs that are open and that nobody is known to hold: not in the
-- outbox, not in `running`, not in any live worker's hands at its last beat, and their process is not publishing them. They
-- are queued, or lost.
-- OFFSET 0: looked up for each, whatever the planner makes of a job that it doesn't know; of most jobs the outbox has none.
-- Caller: the search for lost messages. Rows: (job, item, attempt, queue), by job and item, `limit` of a stretch at most.
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
-- How long ago the live worker that has not beaten for longest did. Caller: the search for lost messages.
-- Rows: one, (seconds); NULL: no worker lives.
SELECT extract(epoch FROM now() - min(beat_at))::float8 FROM callboard.workers
WHERE stopped_at IS NULL AND died_at IS NULL

-- name: publish_mark
-- From which items on the messages of open jobs are yet to come: bulk items from `low` on (a publisher may
-- be a window ahead of the watermark), any from `total` on, and all of the jobs with a higher id than `last`.
-- Caller: the search for lost messages. Rows: (job, low, total, last), those that moved last.
SELECT id, CASE WHEN watermark + %(PUBLISH_WINDOW_ITEMS)s < bulk_end THEN watermark + %(PUBLISH_WINDOW_ITEMS)s ELSE total END, total,
       (SELECT max(id) FROM callboard.jobs)
FROM callboard.jobs WHERE finished_at IS NULL ORDER BY updated_at DESC LIMIT %(limit)s

-- name: passed_mark
-- Whether a queue has given out a message that came into it after a mark: then it has given out all that
-- came before. Items are looked at here and there, a few at a place: what came next may itself be lost.
-- Caller: the search for lost messages, of queues that keep the order. Rows: one, (yes or no).
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
-- These items' messages are lost; send them again, as suspect, since nobody can be sure.
-- Guard: the row still carries that attempt and waits, and nobody is known to hold it; and, of a sweep that was frozen
-- and comes to, that it has the lease still: another may have sent them meanwhile. With `given_back`, that no message of
-- the job has come back since the search had that number: it may be one of these. `job`: a list of one, as `held` takes it.
-- Caller: the search. Rows: (item).
-- Lock order: items by key without waiting for any, then their outbox rows and turns: the inner query locks one at a time, in the
-- order of the outer. Waits for a lock for LOCK_WAIT_SECONDS at most.
-- OFFSET 0 keeps the planner from reading all of a large job for some thousand of its items.
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
