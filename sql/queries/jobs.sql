-- name: lock_jobs
-- Lock jobs that are about to get items, or to be recounted, in order of id.
-- Caller: the store of sends, the callback dispatcher, the repair of counters. Rows: (id, whether it takes items).
SELECT id, finished_at IS NULL AND stopping IS NULL AND stages IS NULL AND NOT sealed FROM callboard.jobs
WHERE id = ANY(%(jobs)s) ORDER BY id FOR NO KEY UPDATE

-- name: recount_jobs
-- Recount the counters of jobs from their rows. An earlier statement must have locked the jobs: then everything committed
-- before is counted, and later commits add to it.
-- Transition: none, except for a job that was completed too early: it runs again. Caller: the repair of counters.
UPDATE callboard.jobs AS j
SET total = c.total,
    bulk_end = least(j.bulk_end, c.total),
    watermark = least(j.watermark, c.total),
    published = CASE WHEN j.finished_at IS NULL THEN c.published ELSE least(j.published, c.total) END,
    retrying = c.retrying,
    succeeded = c.succeeded,
    failed = c.failed,
    skipped = c.skipped,
    cancelled = c.cancelled,
    in_turn = c.in_turn,
    retries = (SELECT count(*) FROM callboard.attempts AS a CROSS JOIN LATERAL (
                   SELECT attempt FROM callboard.items AS i WHERE i.job_id = a.job_id AND i.item = a.item OFFSET 0
               ) AS i
               WHERE a.job_id = j.id AND a.attempt < i.attempt AND a.kind <> 'postponed'),
    crashes = c.crashes,
    unkept = c.unkept,
    state = CASE WHEN c.early THEN 'running' ELSE j.state END,
    finished_at = CASE WHEN NOT c.early THEN j.finished_at END,
    updated_at = now()
FROM (
    SELECT k.id, k.state = 'completed' AND c.ended < c.total AS early, c.*
    FROM callboard.jobs AS k {counted_items} WHERE k.id = ANY(%(jobs)s) AND k.deleted_at IS NULL
) AS c
WHERE j.id = c.id

-- part: counted_items
-- The right counters of the job `k`, from its items and their rows in the outbox: the row `c`.
-- Each outbox row looks up its item: in a join, the planner may compare all rows of a job without statistics.
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE o.in_turn) AS in_turn, count(*) FILTER (WHERE i.state = 'retrying') AS parked,
           count(*) FILTER (WHERE o.first AND i.sent_at IS NOT NULL) AS to_come
    FROM callboard.outbox AS o CROSS JOIN LATERAL (
        SELECT state, sent_at FROM callboard.items AS i WHERE i.job_id = o.job_id AND i.item = o.item OFFSET 0
    ) AS i
    WHERE o.job_id = k.id
) AS o
CROSS JOIN LATERAL (
    SELECT count(*) AS total,
           count(*) FILTER (WHERE i.state = 'retrying') AS retrying,
           count(*) FILTER (WHERE i.state = 'succeeded') AS succeeded,
           count(*) FILTER (WHERE i.state = 'failed') AS failed,
           count(*) FILTER (WHERE i.state = 'skipped') AS skipped,
           count(*) FILTER (WHERE i.state = 'cancelled') AS cancelled,
           count(i.finished_at) AS ended,
           coalesce(sum(i.crashes), 0)::bigint AS crashes,
           (SELECT count(v.unkept) FROM callboard.results AS v WHERE v.job_id = k.id) AS unkept,
           count(*) FILTER (WHERE i.sent_at IS NOT NULL OR i.item < k.watermark) - o.to_come AS published,
           o.in_turn, o.parked
    FROM callboard.items AS i WHERE i.job_id = k.id
) AS c

-- name: pause_job
-- Pause a job: no more items start until it is resumed. Transition: pending | running -> paused.
-- Guard: not stopping. Caller: actions.pause, retry. Rows: (id); none: see job_status.
UPDATE callboard.jobs SET state = 'paused', epoch = epoch + 1, control_at = clock_timestamp(), updated_at = now()
WHERE id = %(job)s AND state IN ('pending', 'running') AND stopping IS NULL
RETURNING id

-- name: resume_job
-- Resume a job. Transition: paused -> pending | running. Guard: not stopping.
-- Caller: actions.resume. Rows: (id); none: see job_status.
UPDATE callboard.jobs
SET state = CASE WHEN started_at IS NULL THEN 'pending' ELSE 'running' END::callboard.job_state,
    epoch = epoch + 1, control_at = clock_timestamp(), updated_at = now()
WHERE id = %(job)s AND state = 'paused' AND stopping IS NULL
RETURNING id

-- name: stop_job
-- Stop a job: no more items start. Transition: open -> stopping; close_stopped makes it final when its last running item
-- has ended. Guard: open and not stopping.
-- Caller: actions.cancel. Rows: (id); none: see job_status.
UPDATE callboard.jobs
SET stopping = %(state)s::callboard.job_state, reason = %(reason)s, {stops}
WHERE id = %(job)s AND finished_at IS NULL AND stopping IS NULL
RETURNING id

-- part: stops
-- The columns that every stop of a job writes, too: workers read them, and a standing job is sealed, so that a new one
-- takes the sends of its day.
epoch = epoch + 1, control_at = clock_timestamp(), sealed = sealed OR standing_on IS NOT NULL, updated_at = now()

-- name: stop_overdue_jobs
-- Stop jobs whose deadline passed. Transition: open -> stopping, to be cancelled. Guard: not stopping. A job whose
-- deadline is before its creation, as submitted or after an action during the submission, is stopped only after the
-- submission, so that its submitter always gets the same answer: the job, which is cancelled soon after.
-- Caller: the sweep; without `writes` it only finds them. Rows: (id). Lock order: jobs without waiting for any: a later
-- call stops the locked ones; then their turns, for LOCK_WAIT_SECONDS at most.
WITH late AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE deadline < now() AND finished_at IS NULL AND stopping IS NULL AND {of_page}
      AND (sealed OR deadline > created_at OR submitting_until > now() IS NOT TRUE)
    ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED
), stopped AS (
    UPDATE callboard.jobs AS j
    SET stopping = 'cancelled', {stops},
        reason = 'its deadline passed with ' || total - succeeded - failed - skipped - cancelled || ' items to go'
                 || CASE WHEN stage > 0 AND NOT sealed THEN ', and others not made yet' ELSE '' END
    FROM late, {lock_wait} WHERE j.id = late.id AND %(writes)s
)
SELECT id FROM late

-- name: stop_jobs_without_actor
-- Stop jobs whose actor no worker has announced within `actor_wait`. Transition: open -> stopping, to be failed, with the
-- reason. Guard: neither paused nor stopping; the stage before a stage has ended. The time begins when the job could have
-- run. Caller: the sweep. Rows, `writes` and lock order: as in `stop_overdue_jobs`.
WITH waiting AS (
    SELECT j.id FROM callboard.jobs AS j
    LEFT JOIN callboard.jobs AS before ON before.parent_id = j.parent_id AND before.stage = j.stage - 1
    WHERE j.finished_at IS NULL AND j.stopping IS NULL AND j.state <> 'paused' AND {of_page}
      AND j.actor IS NOT NULL AND j.actor NOT IN (SELECT name FROM callboard.actors)
      AND (before.id IS NULL OR before.finished_at IS NOT NULL)
      AND greatest(j.created_at, j.not_before, j.control_at, before.finished_at)
          < now() - make_interval(secs => %(actor_wait)s::float8)
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), stopped AS (
    UPDATE callboard.jobs AS j
    SET stopping = 'failed', {stops},
        reason = 'no worker announced the actor ' || actor || ' in the time that CALLBOARD_ACTOR_WAIT gives: start a worker'
                 || ' that has it, and retry the job'
    FROM waiting, {lock_wait} WHERE j.id = waiting.id AND %(writes)s
)
SELECT id FROM waiting

-- name: stop_jobs_of_queue
-- Stop the jobs of a queue whose messages are dropped. Transition: open -> stopping, to be cancelled. Guard: not stopping,
-- has items that have not ended, and the queue is the job's, or the queue of such an item.
-- Caller: TrackedBroker.flush. Rows: (id, state, epoch, stopping). Lock order: jobs by id.
WITH dropped AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.finished_at IS NULL AND j.stopping IS NULL AND j.stages IS NULL
      AND j.total > j.succeeded + j.failed + j.skipped + j.cancelled
      AND (j.queue = %(queue)s
           -- By the index: an EXISTS may read the items of all jobs in the table.
           OR (SELECT true FROM callboard.items AS i
               WHERE i.job_id = j.id AND i.queue = %(queue)s AND i.state IN ('waiting', 'retrying') LIMIT 1))
    ORDER BY j.id FOR NO KEY UPDATE
)
UPDATE callboard.jobs AS j
SET stopping = 'cancelled', {stops},
    reason = 'the messages of the queue ' || %(queue)s::text || ' were dropped'
FROM dropped WHERE j.id = dropped.id
RETURNING j.id, j.state::text, j.epoch, true

-- name: queue_has_open_items
-- Whether a queue has items that have not ended, in jobs that go on. Caller: TrackedBroker.join. Rows: one.
SELECT EXISTS (
    SELECT FROM callboard.jobs AS j CROSS JOIN LATERAL (
        SELECT FROM callboard.items AS i
        WHERE i.job_id = j.id AND i.state IN ('waiting', 'retrying') AND coalesce(i.queue, j.queue) = %(queue)s
        LIMIT 1  -- so that it is looked up for each open job
    ) AS i
    WHERE j.finished_at IS NULL AND j.stopping IS NULL AND j.state <> 'paused'
)

-- name: close_stopped
-- Close jobs that are being stopped and have no running items. Transition: stopping -> failed | cancelled.
-- Guard: every worker had time to read it (CONTROLS_HEARD_SECONDS), or nothing was ever published and no publisher has a
-- claim, or no worker is alive; and no item has a row in `running`. A job of stages ends with its stages (end_parent).
-- Caller: actions.cancel, stages, the heartbeat, the sweep. Rows, `writes` and lock order: as in `stop_overdue_jobs`.
WITH done AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.finished_at IS NULL AND j.stopping IS NOT NULL AND j.stages IS NULL AND {of_page}
      AND (j.control_at < clock_timestamp() - make_interval(secs => %(CONTROLS_HEARD_SECONDS)s)
           OR j.published = 0 AND j.publish_until IS NULL
              AND NOT EXISTS (SELECT FROM callboard.outbox AS o WHERE o.job_id = j.id AND o.claimed_until IS NOT NULL)
           OR NOT EXISTS (SELECT FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s)))
      AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = j.id)
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
), closed AS (
    UPDATE callboard.jobs AS j
    SET state = j.stopping, stopping = NULL, finished_at = now(), updated_at = now()
    FROM done, {lock_wait} WHERE j.id = done.id AND %(writes)s
)
SELECT id FROM done

-- name: close_jobs
-- Close sealed jobs whose items are all final and that are still open. This should never happen.
-- Transition: pending | running | paused -> completed. Caller: the sweep. Rows, `writes` and lock order: as in
-- `stop_overdue_jobs`.
WITH done AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.finished_at IS NULL AND j.sealed AND j.stopping IS NULL
      AND j.succeeded + j.failed + j.skipped + j.cancelled = j.total AND {of_page}
    ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED
), closed AS (
    UPDATE callboard.jobs AS j SET state = 'completed', finished_at = now(), updated_at = now()
    FROM done, {lock_wait} WHERE j.id = done.id AND %(writes)s
)
SELECT id FROM done

-- name: job_facts
-- The app's data of a job; for a stage, the data of its parent. Caller: a worker whose actor asks for it, once per job.
-- Rows: JobFacts; none: the job is deleted.
SELECT coalesce(p.tenant, j.tenant), coalesce(p.key, j.key), coalesce(p.metadata, j.metadata)::text, coalesce(p.trace, j.trace)
FROM callboard.jobs AS j LEFT JOIN callboard.jobs AS p ON p.id = j.parent_id
WHERE j.id = %(job)s
