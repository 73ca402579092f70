-- name: announce_actors
-- The actors that a worker has. Caller: register_worker, add_actors. Lock order: actors by name. Waits for a lock for
-- LOCK_WAIT_SECONDS at most.
INSERT INTO callboard.actors AS a (name, queue, signature)
SELECT name, queue, signature
FROM unnest(%(actors)s::text[], %(queues)s::text[], %(signatures)s::jsonb[]) AS n (name, queue, signature), {lock_wait}
ORDER BY name
ON CONFLICT (name) DO UPDATE SET queue = excluded.queue, signature = excluded.signature

-- name: register_worker
-- A worker process starts; the turns of jobs that may have waited for it become due. Caller: the heartbeat.
-- Rows: one, (id). Lock order: turns without waiting for any.
WITH {woken_turns}
INSERT INTO callboard.workers (host, pid, threads, release, actors, queues, broker)
VALUES (%(host)s, %(pid)s, %(threads)s, %(release)s, %(actors)s, %(queues)s, %(broker)s)
RETURNING id

-- name: add_actors
-- A worker has more actors, which were declared after its start. Caller: the heartbeat. Lock order: the worker, turns
-- without waiting for any. Waits for a lock for LOCK_WAIT_SECONDS at most.
WITH {woken_turns}
UPDATE callboard.workers
SET actors = ARRAY(SELECT unnest(actors) UNION SELECT unnest(%(actors)s::text[]) ORDER BY 1),
    queues = ARRAY(SELECT unnest(queues) UNION SELECT unnest(%(queues)s::text[]) ORDER BY 1)
FROM {lock_wait} WHERE id = %(worker)s

-- part: woken_turns
-- Makes the turns of jobs due that may have waited for these actors.
waiting AS (
    SELECT t.job_id, t.queue FROM callboard.turns AS t JOIN callboard.jobs AS j ON j.id = t.job_id
    WHERE t.bulk_at > now() AND t.bulk_at < 'infinity' AND j.actor = ANY (%(actors)s::text[]) FOR UPDATE OF t SKIP LOCKED
), woken AS (
    UPDATE callboard.turns AS t SET bulk_at = now(), seq = t.seq + 1
    FROM waiting AS w WHERE t.job_id = w.job_id AND t.queue = w.queue
)

-- name: other_brokers
-- The first live worker on each other broker, among those that registered before this one. Caller: the heartbeat.
-- Rows: (id, host, broker).
SELECT DISTINCT ON (o.broker) o.id, o.host, o.broker
FROM callboard.workers AS w JOIN callboard.live_workers(%(DEAD_AFTER_SECONDS)s) AS o ON o.id < w.id AND o.broker <> w.broker
WHERE w.id = %(worker)s ORDER BY o.broker, o.id

-- name: worker_elsewhere
-- The first live worker on another broker than this. Caller: Runtime.drop_queue. Rows: (host, broker), or none.
SELECT host, broker FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s) WHERE broker <> %(broker)s ORDER BY id LIMIT 1

-- name: beat
-- Record a heartbeat: the worker is alive, holds these items, and has this trouble with its broker (`beats`: not at each
-- poll). A worker that was declared dead becomes alive again. Its session is a second sign of life, unless a pooler owns
-- it: then the client has another pid. A worker whose code an applied migration breaks is not recorded. The statement also
-- returns the due work, for any process, so that idle ones need no other query; so it does while another transaction has
-- locked the worker's row, which is skipped then.
-- Guard: the row belongs to that process: in a database that was restored, or created again, it may be missing, or
-- another's. Caller: the heartbeat. Rows: one, DueWork.
WITH outdated AS (
    SELECT EXISTS (SELECT FROM callboard.migrations WHERE breaking AND number > %(newest)s) AS by_a_migration
), own AS (
    SELECT id FROM callboard.workers WHERE id = %(worker)s AND (%(pid)s::int IS NULL OR pid = %(pid)s AND host = %(host)s)
), beaten AS (
    UPDATE callboard.workers
    SET session = CASE WHEN pg_backend_pid() = %(session)s THEN pg_backend_pid() END,
        session_since = (SELECT s.backend_start FROM pg_catalog.pg_stat_get_activity(pg_backend_pid()) AS s),
        beat_at = now(), died_at = NULL, held_jobs = %(jobs)s, held_items = %(items)s, trouble = %(trouble)s
    WHERE id = (SELECT id FROM callboard.workers
                WHERE id = (SELECT id FROM own) AND %(beats)s FOR NO KEY UPDATE SKIP LOCKED)
      AND NOT (SELECT by_a_migration FROM outdated)
), living AS (
    SELECT id FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s)
)
SELECT (SELECT count(*)::int FROM living), (SELECT count(*)::int FROM living WHERE id < %(worker)s),
       {clock},
       extract(epoch FROM least((
           SELECT greatest(least(bulk_at, due_at), not_before) FROM callboard.turns
           WHERE NOT held AND NOT over AND least(bulk_at, due_at) <= now() + make_interval(secs => %(SHARED_LOOK_SECONDS)s)
             AND (not_before IS NULL OR not_before <= now() + make_interval(secs => %(SHARED_LOOK_SECONDS)s))
             AND (deadline IS NULL OR deadline > now())
           ORDER BY least(bulk_at, due_at) LIMIT 1), (
           SELECT due_at FROM callboard.outbox
           WHERE dead AND due_at <= now() + make_interval(secs => %(SHARED_LOOK_SECONDS)s)
             AND (claimed_until IS NULL OR claimed_until <= now())
           ORDER BY due_at LIMIT 1)) - now())::float8,
       EXISTS (SELECT FROM callboard.callbacks
               WHERE delivered_at IS NULL AND gave_up_at IS NULL AND greatest(due_at, claimed_until) <= now()),
       EXISTS (SELECT FROM callboard.jobs WHERE stages IS NOT NULL AND finished_at IS NULL),
       coalesce(greatest((SELECT max(control_at) FROM callboard.jobs), (SELECT max(deleted_at) FROM callboard.deleted_jobs))
                > now() - make_interval(secs => %(CONTROLS_SECONDS)s), false),
       NOT EXISTS (SELECT FROM callboard.leases
                   WHERE name = 'sweep' AND {lease_holds} AND (holder <> '' OR NOT ({anything_to_sweep}))),
       (SELECT by_a_migration FROM outdated), %(beats)s AND NOT EXISTS (SELECT FROM own)

-- name: report_means
-- Record the mean duration of actors' attempts in a worker. A longer mean replaces the known one; for a shorter one, the
-- geometric mean of both is stored, because other workers may take longer. Small differences are ignored. Caller: the
-- heartbeat. Lock order: actors by name without waiting for any.
WITH known AS (
    SELECT a.name, m.seconds FROM unnest(%(actors)s::text[], %(seconds)s::float8[]) AS m (actor, seconds)
    JOIN callboard.actors AS a ON a.name = m.actor
    WHERE a.mean_seconds IS NULL OR m.seconds NOT BETWEEN 0.8 * a.mean_seconds AND 1.1 * a.mean_seconds
    ORDER BY a.name FOR NO KEY UPDATE OF a SKIP LOCKED
)
UPDATE callboard.actors AS a
SET mean_seconds = greatest(k.seconds, sqrt(k.seconds * a.mean_seconds))
FROM known AS k WHERE a.name = k.name

-- name: exclude_tests
-- Become the only test worker of this database, until the session ends. Caller: the pytest plug-in.
-- Rows: one, whether no other session is one.
SELECT pg_try_advisory_lock(hashtextextended('callboard.testing', 0))

-- name: stop_worker
-- A worker stops gracefully. Caller: the heartbeat. Waits for a lock for LOCK_WAIT_SECONDS at most.
UPDATE callboard.workers SET stopped_at = now(), held_jobs = '{}', held_items = '{}'
FROM {lock_wait} WHERE id = %(worker)s

-- name: schema_id
-- Digits that identify this schema, even among databases with the same name, dropped ones, and those made from the same
-- template. Caller: the heartbeat, when it registers. Rows: one, (digits).
SELECT concat(d.oid, (extract(epoch FROM m.applied_at) * 1000000)::bigint)
FROM callboard.migrations AS m, pg_catalog.pg_database AS d
WHERE m.number = 1 AND d.datname = current_database()

-- name: note_death
-- The process of a worker is dead. Guard: it did not stop gracefully, and has this pid: a copy of the database has the same
-- worker ids. Caller: the rescue. Rows: (whether that was not yet known). Waits for a lock for LOCK_WAIT_SECONDS at most.
WITH found AS (
    SELECT id, died_at IS NULL AS newly FROM callboard.workers
    WHERE id = %(worker)s AND pid = %(pid)s AND stopped_at IS NULL
), died AS (
    UPDATE callboard.workers AS w SET died_at = now() FROM {lock_wait}, found AS f WHERE f.newly AND w.id = f.id
)
SELECT newly FROM found

-- name: keep_deaths
-- Items that a dead process was running have succeeded elsewhere before its file was read: add its death to their history,
-- without charging a crash.
-- Guard: the item succeeded with that attempt. If it ended otherwise, the history already has that attempt. An item that
-- another transaction has locked is skipped.
-- Caller: the rescue. Rows: one, how many of the items are still open. Lock order: items by key without waiting for any,
-- then groups of errors by job.
WITH held AS (
    SELECT r.*, i.state FROM {Running} AS r JOIN callboard.items AS i ON i.job_id = r.job AND i.item = r.item
    WHERE i.attempt = r.attempt ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i SKIP LOCKED
), kept AS (
    INSERT INTO callboard.attempts
        (job_id, item, attempt, kind, retried, worker, started_at, ended_at, error_type, pattern, message)
    SELECT h.job, h.item, h.attempt, %(kind)s::callboard.attempt_kind, true, %(worker)s, now() - make_interval(secs => h.age),
           now(), %(error_type)s, %(pattern)s, %(message)s
    FROM held AS h WHERE h.state = 'succeeded'
    ON CONFLICT DO NOTHING
    RETURNING job_id, item
), grouped AS (
    INSERT INTO callboard.errors AS e
        (job_id, kind, error_type, place, pattern, count, failed, first_at, last_at, item, message)
    SELECT k.job_id, %(kind)s::callboard.attempt_kind, %(error_type)s, '', %(pattern)s, count(*), 0, now(), now(), min(k.item),
           %(message)s
    FROM kept AS k GROUP BY k.job_id ORDER BY k.job_id
    ON CONFLICT (job_id, kind, error_type, place, pattern) DO UPDATE
    SET count = e.count + excluded.count, last_at = greatest(e.last_at, excluded.last_at)
)
SELECT count(*) FROM held WHERE state IN ('waiting', 'retrying')

-- name: dead_workers
-- Workers whose items must be rescued: their heartbeat stopped, or they ended and left rows in `running`.
-- Caller: the sweep. Rows: (id).
SELECT id FROM callboard.workers AS w
WHERE stopped_at IS NULL AND died_at IS NULL AND {is_dead}
UNION
SELECT w.id FROM callboard.running AS r JOIN callboard.workers AS w ON w.id = r.worker
WHERE w.stopped_at IS NOT NULL OR w.died_at IS NOT NULL

-- name: declare_dead
-- Declare a worker dead. Guard: its heartbeat stopped, or it has already ended; no other transaction has locked it.
-- Caller: the rescue. Rows: (id); none: it is alive, or locked. The row stays locked until the end of the transaction, so
-- only one process at a time decides which items the crash is charged to; the guard of `record` requeues each item once.
UPDATE callboard.workers SET died_at = coalesce(died_at, now()), held_jobs = '{}', held_items = '{}'
WHERE id = (SELECT id FROM callboard.workers AS w
            WHERE id = %(worker)s AND (stopped_at IS NOT NULL OR died_at IS NOT NULL OR {is_dead})
            FOR NO KEY UPDATE SKIP LOCKED)
RETURNING id

-- part: is_dead
-- Whether the heartbeat of the worker `w` stopped. While its session is open it may just be busy: an actor's C code can hold
-- the GIL. That counts for SILENT_SECONDS only, because a frozen process keeps its sessions, too.
beat_at < now() - make_interval(secs => %(DEAD_AFTER_SECONDS)s)
AND (beat_at < now() - make_interval(secs => %(SILENT_SECONDS)s)
     OR NOT EXISTS (SELECT FROM pg_catalog.pg_stat_get_activity(w.session) AS s
                    WHERE w.session IS NOT NULL AND s.backend_start = w.session_since))

-- name: running_rows
-- The items that a dead worker held, with their crashes, and with the crash limit that an earlier transaction of the same
-- rescue chose; a limit from an earlier death, before the worker became alive again, is ignored. Caller: the rescue.
-- Rows: Held, ordered by key.
SELECT r.job_id, r.item, r.attempt, coalesce(i.crashes, 0), extract(epoch FROM now() - r.started_at)::float8,
       extract(epoch FROM w.beat_at - r.started_at)::float8, CASE WHEN w.died_at < now() THEN r.crash_limit END
FROM callboard.running AS r JOIN callboard.items AS i USING (job_id, item) JOIN callboard.workers AS w ON w.id = r.worker
WHERE r.worker = %(worker)s ORDER BY r.job_id, r.item

-- name: save_crash_limits
-- Store the crash limits of a dead worker's items, for those that are requeued later.
-- Caller: the rescue, in the transaction of `declare_dead`. Lock order: rows in `running` by key.
WITH held AS (
    SELECT r.job_id, r.item, h.crash_limit
    FROM callboard.running AS r
    JOIN unnest(%(job)s::bigint[], %(item)s::int[], %(crash_limit)s::int[]) AS h (job_id, item, crash_limit)
        ON r.job_id = h.job_id AND r.item = h.item
    WHERE r.worker = %(worker)s ORDER BY r.job_id, r.item FOR NO KEY UPDATE OF r
)
UPDATE callboard.running AS r SET crash_limit = h.crash_limit FROM held AS h WHERE r.job_id = h.job_id AND r.item = h.item

-- name: job_controls
-- The control states of jobs, for all workers: of jobs that changed `within` so many seconds, or of all that may still have
-- messages in RabbitMQ; deleted jobs included. Caller: the heartbeat. Rows: JobControl.
-- Recent changes have a SELECT of their own, which reads only these by the index: each worker runs it twice a second.
SELECT {control} FROM callboard.jobs AS j
WHERE control_at > now() - make_interval(secs => %(within)s::float8)
UNION ALL
SELECT {control} FROM callboard.jobs AS j
WHERE %(within)s::float8 IS NULL AND control_at IS NOT NULL
  AND (finished_at IS NULL OR published > succeeded + failed + skipped)
UNION ALL
SELECT id, 'cancelled', epoch, false, false, NULL, NULL FROM callboard.deleted_jobs
WHERE deleted_at > coalesce(now() - make_interval(secs => %(within)s::float8), '-infinity')

-- part: control
-- The control state of the job `j`. The holds: {lane: seconds from now}, of those that are not over.
j.id, j.state::text, j.epoch, j.stopping IS NOT NULL, false, j.applied_lane_by, (
    SELECT coalesce(jsonb_object_agg(h.key, extract(epoch FROM (h.value ->> 'until')::timestamptz - now())), '{}')
    FROM jsonb_each(j.holds) AS h WHERE (h.value ->> 'until')::timestamptz > now())
