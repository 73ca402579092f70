-- name: claim_item
-- A suspect message arrived: claim its item, if this worker may run it.
-- Guard: the row still has the message's attempt, is not final, and no worker holds it (a row in `running`). An item that
-- would fail by its next crash must run alone: it is claimed only then, so that no crash is charged to it while it waits.
-- Only an item that no other worker holds waits. This statement may miss a very recent claim; the claim after the wait
-- sees it. Caller: attempts/claim, before the actor, and only for suspect messages. Waits for a lock for
-- LOCK_WAIT_SECONDS at most. Rows: Claim; none: no such item. A holder whose heartbeat is late counts as alive here: after
-- an outage all heartbeats are late. The sweep declares workers dead.
WITH found AS MATERIALIZED (
    SELECT state, attempt, coalesce(crashes, 0) AS crashes, attempt = %(attempt)s AND state IN ('waiting', 'retrying') AS open,
           coalesce(crashes, 0) < %(MAX_CRASHES)s - 1 OR %(alone)s AS ready
    FROM callboard.items, {lock_wait}
    WHERE job_id = %(job)s AND item = %(item)s FOR NO KEY UPDATE OF items
), held AS (
    INSERT INTO callboard.running AS r (job_id, item, attempt, worker, started_at)
    SELECT %(job)s, %(item)s, %(attempt)s, %(worker)s, now() FROM found
    WHERE found.open AND found.ready
    ON CONFLICT (job_id, item) DO UPDATE SET worker = r.worker
    RETURNING r.worker, r.xmax = 0 AS taken
)
SELECT found.state::text, found.attempt, found.crashes, coalesce(held.worker, r.worker), coalesce(held.taken, false),
       coalesce(w.stopped_at IS NULL AND w.died_at IS NULL, false),
       found.open AND NOT found.ready AND coalesce(r.worker = %(worker)s, true)
FROM found LEFT JOIN held ON true
LEFT JOIN callboard.running AS r ON found.open AND NOT found.ready AND r.job_id = %(job)s AND r.item = %(item)s
LEFT JOIN callboard.workers AS w ON w.id = coalesce(held.worker, r.worker)

-- name: release_item
-- A claimed item must not run: its job was paused or stopped meanwhile.
-- Guard: this worker holds it for that attempt. Caller: InFlight. No row: the worker was declared dead and the item rescued.
-- Waits for a lock for LOCK_WAIT_SECONDS at most.
DELETE FROM callboard.running USING {lock_wait}
WHERE job_id = %(job)s AND item = %(item)s AND attempt = %(attempt)s AND worker = %(worker)s

-- name: postpone
-- A message reached a worker without its actor. It waits in the outbox: for POSTPONE_SECONDS if a live worker has the
-- actor, else until one has it (make_postponed_due), or none has announced it for too long.
-- Guard: the row still has that attempt and waits, and no worker holds it.
-- Caller: the hooks, for a message whose actor is missing. Rows: one, whether the item must fail now.
-- Lock order: the item, its turn, its row of the outbox. Waits for a lock for LOCK_WAIT_SECONDS at most.
WITH found AS MATERIALIZED (
    SELECT i.job_id, i.item, i.attempt, i.queue, {unknown_too_long} AS fails
    FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id CROSS JOIN {lock_wait}
    WHERE i.job_id = %(job)s AND i.item = %(item)s AND i.attempt = %(attempt)s AND i.state IN ('waiting', 'retrying')
      AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item)
    FOR NO KEY UPDATE OF i
), waiting AS (
    SELECT job_id, item, attempt, queue FROM found WHERE NOT fails
), kept AS (
    INSERT INTO callboard.outbox AS o (job_id, item, attempt, queue, awaits, due_at, first, suspect, resend)
    SELECT job_id, item, attempt, coalesce(queue, ''), %(actor)s,
           CASE WHEN EXISTS (SELECT FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s) AS w WHERE %(actor)s = ANY (w.actors))
                THEN now() + make_interval(secs => %(POSTPONE_SECONDS)s) ELSE timestamptz '9999-01-01Z' END,
           false, true, true
    FROM waiting
    -- Delivered before its publisher settled the row: the new id keeps the publisher from deleting it.
    ON CONFLICT (job_id, item) DO UPDATE
    SET id = DEFAULT, awaits = excluded.awaits, due_at = excluded.due_at, claimed_until = NULL, suspect = true,
        resend = true
    WHERE o.attempt = excluded.attempt
)
SELECT EXISTS (SELECT FROM found WHERE fails)

-- part: unknown_too_long
-- Whether the item `i` of the job `j` has its own actor, which no worker has announced within `actor_wait`. For the job's
-- actor, the job is stopped: see stop_jobs_without_actor.
coalesce(i.actor <> coalesce(j.actor, '')
         AND NOT EXISTS (SELECT FROM callboard.actors AS a WHERE a.name = i.actor)
         AND greatest(i.sent_at, j.not_before, j.control_at) < now() - make_interval(secs => %(actor_wait)s::float8), false)

-- name: make_postponed_due
-- Postponed messages become due: a live worker has their actor, or no worker has announced it for too long.
-- Guard: they still wait. If another transaction has locked a message or its turn, a later call makes it due.
-- A call takes a `batch` of messages with a live worker, and the `limit` oldest messages of each actor that no worker
-- announced: the others have waited for a shorter time.
-- Caller: the sweep. Lock order: turns and rows of the outbox, without waiting for any.
WITH RECURSIVE awaited AS (
    -- Each actor that messages wait for, found by one index step.
    (SELECT o.awaits AS actor FROM callboard.outbox AS o
     WHERE o.due_at = timestamptz '9999-01-01Z' ORDER BY o.awaits LIMIT 1)
    UNION ALL
    SELECT (SELECT o.awaits FROM callboard.outbox AS o
            WHERE o.due_at = timestamptz '9999-01-01Z' AND o.awaits > awaited.actor ORDER BY o.awaits LIMIT 1)
    FROM awaited WHERE awaited.actor IS NOT NULL
), able AS (
    SELECT DISTINCT unnest(actors) AS actor FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s)
), known AS (
    -- Its turn is locked first, because the update of a message changes its turn. A locked turn does not delay messages of
    -- other jobs.
    SELECT o.id FROM awaited AS a CROSS JOIN LATERAL (
        SELECT o.id, o.job_id, o.queue FROM callboard.outbox AS o
        WHERE o.due_at = timestamptz '9999-01-01Z' AND {of_actor} ORDER BY o.awaits, o.id
    ) AS w CROSS JOIN LATERAL {unlocked_turn} CROSS JOIN LATERAL (
        SELECT o.id, o.due_at FROM callboard.outbox AS o WHERE o.id = w.id OFFSET 0 FOR UPDATE SKIP LOCKED
    ) AS o
    WHERE a.actor IN (SELECT actor FROM able) AND o.due_at = timestamptz '9999-01-01Z' LIMIT %(batch)s
), unknown AS (
    SELECT w.id FROM awaited AS a CROSS JOIN LATERAL (
        SELECT o.id, o.job_id, o.queue, o.item FROM callboard.outbox AS o
        WHERE o.due_at = timestamptz '9999-01-01Z' AND {of_actor}
        ORDER BY o.awaits, o.id LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ) AS w CROSS JOIN LATERAL {unlocked_turn}
    CROSS JOIN LATERAL (
        SELECT actor, sent_at FROM callboard.items AS i WHERE i.job_id = w.job_id AND i.item = w.item OFFSET 0
    ) AS i
    CROSS JOIN LATERAL (
        SELECT actor, not_before, control_at FROM callboard.jobs AS j WHERE j.id = w.job_id OFFSET 0
    ) AS j
    WHERE a.actor NOT IN (SELECT name FROM callboard.actors) AND {unknown_too_long}
)
UPDATE callboard.outbox AS o SET due_at = now()
FROM (SELECT id FROM known UNION ALL SELECT id FROM unknown) AS w WHERE o.id = w.id

-- part: of_actor
-- Whether the message `o` waits for the actor `a.actor`. Compared by >= and <=: with = the planner may read the messages
-- that wait for all other actors, in the order of the primary key or in none.
o.awaits >= a.actor AND o.awaits <= a.actor

-- name: lock_parked
-- Lock the items whose messages are about to be parked. A statement of its own: if two workers park copies of one message,
-- the second sees the changes of the first only in its next statement. Caller: park. Lock order: items by key.
-- The transaction waits for a lock for LOCK_WAIT_SECONDS at most.
SELECT FROM unnest(%(job)s::bigint[], %(item)s::int[]) AS g (job_id, item)
JOIN callboard.items AS i ON i.job_id = g.job_id AND i.item = g.item CROSS JOIN {lock_wait}
ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i

-- name: park
-- Messages of paused jobs arrived, or messages were given back because no thread is free. They leave RabbitMQ and are
-- published again, in order, in the turn of their job, when the job is resumed.
-- Transition: retrying -> waiting, because it was published. Guard: the row still has that attempt and is not final.
-- An outbox row that its publisher has not settled yet gets a new id, so that the publisher does not delete it.
-- Caller: parking. Lock order: items by key, their outbox rows, then jobs by id.
WITH held AS (
    SELECT i.job_id, i.item, i.attempt, i.queue, i.state, i.attempt = g.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM unnest(%(job)s::bigint[], %(item)s::int[], %(attempt)s::int[]) AS g (job_id, item, attempt)
    JOIN callboard.items AS i ON i.job_id = g.job_id AND i.item = g.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
), open AS (
    SELECT job_id, item, attempt, queue, state FROM held WHERE open
), in_outbox AS (
    SELECT o.job_id, o.item, o.first, o.in_turn
    FROM open JOIN callboard.outbox AS o ON o.job_id = open.job_id AND o.item = open.item
    ORDER BY o.job_id, o.item FOR UPDATE OF o
), waiting AS (
    UPDATE callboard.items AS i SET state = 'waiting'
    FROM open AS o WHERE i.job_id = o.job_id AND i.item = o.item AND o.state = 'retrying'
    RETURNING i.job_id
), parked AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, queue, due_at, first, suspect, in_turn)
    SELECT o.job_id, o.item, o.attempt, coalesce(o.queue, ''), 'infinity', false, true, true
    FROM open AS o WHERE (SELECT count(*) FROM in_outbox) >= 0  -- these first
    ORDER BY o.job_id, o.item
    ON CONFLICT (job_id, item) DO UPDATE
    SET id = DEFAULT, attempt = excluded.attempt, due_at = excluded.due_at, first = false, suspect = true, in_turn = true,
        claimed_until = NULL
), delta AS (
    SELECT job_id, sum(in_turn) AS in_turn, sum(published) AS published, sum(retrying) AS retrying
    FROM (
        SELECT job_id, count(*) AS in_turn, 0 AS published, 0 AS retrying FROM open GROUP BY job_id
        UNION ALL
        SELECT job_id, -count(*) FILTER (WHERE in_turn), count(*) FILTER (WHERE first), 0 FROM in_outbox GROUP BY job_id
        UNION ALL
        SELECT job_id, 0, 0, count(*) FROM waiting GROUP BY job_id
    ) AS part
    GROUP BY job_id
), locked AS (
    SELECT j.id FROM callboard.jobs AS j JOIN delta AS d ON d.job_id = j.id ORDER BY j.id FOR NO KEY UPDATE OF j
)
UPDATE callboard.jobs AS j
SET in_turn = j.in_turn + d.in_turn, published = j.published + d.published, retrying = j.retrying - d.retrying, updated_at = now()
FROM delta AS d JOIN locked AS l ON l.id = d.job_id
WHERE j.id = d.job_id
