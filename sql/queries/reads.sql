-- name: jobs_by_id
-- The existing ones of some jobs, of a tenant if one is given, and their stages, in one snapshot.
-- Caller: queries.job, queries.ended_job, queries.jobs_by_id. Rows: as in `jobs`.
WITH {at_work}, page AS MATERIALIZED (
    SELECT id FROM callboard.jobs
    WHERE id = ANY (%(jobs)s::bigint[]) AND deleted_at IS NULL AND (%(tenant)s::text IS NULL OR tenant = %(tenant)s::text)
), looked AS (
    SELECT NULL::bigint AS looked_at WHERE false
), {described_jobs}

-- name: jobs
-- A page of jobs by id, the newest first, without stages. This statement and the next seven differ in `source`: the jobs
-- that the index of one filter finds. At most `look_at` of them are examined for the page, because the other filters have no
-- index; the page ends at `limit` jobs. So a list reads the jobs that it shows, and at most `look_at` others. Pairs are
-- compared where the planner might prefer the primary key, and `look_at` is hidden from it: for such a number it would read
-- and sort all.
-- Caller: queries.jobs. Rows: one per job of the page or stage of one, or else one without an id (see `described_jobs`).
WITH {created_span}, source AS NOT MATERIALIZED (
    SELECT * FROM (
        SELECT j.id, j.deleted_at, {filtered_columns} FROM callboard.jobs AS j
        WHERE {in_span} ORDER BY j.id DESC LIMIT (SELECT %(look_at)s::bigint)
    ) AS j
    WHERE j.parent_id IS NULL AND j.deleted_at IS NULL ORDER BY j.id DESC
), {page_of_jobs}, looked AS (
    -- From all rows, because their index has the ids: to read the jobs again would take as long as to find the page.
    SELECT min(id) AS looked_at FROM (
        SELECT j.id FROM callboard.jobs AS j
        WHERE (SELECT count(*) FROM page) < %(limit)s AND {in_span}
        ORDER BY j.id DESC LIMIT (SELECT %(look_at)s::bigint)
    ) AS j
    HAVING count(*) >= %(look_at)s
), {described_jobs}

-- name: jobs_of_key
-- See `jobs`: each tenant has at most one with this key. Caller: queries.jobs. Rows: as in `jobs`.
WITH {created_span}, source AS MATERIALIZED (
    SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
    WHERE j.key = %(key)s::text AND j.parent_id IS NULL AND j.deleted_at IS NULL AND {in_span}
), {page_of_jobs}, {looked_at_source}, {described_jobs}

-- name: jobs_open
-- See `jobs`: the open ones. Caller: queries.jobs. Rows: as in `jobs`.
WITH {created_span}, source AS NOT MATERIALIZED (
    SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
    WHERE j.finished_at IS NULL AND j.parent_id IS NULL AND {in_span}
    ORDER BY j.id DESC LIMIT (SELECT %(look_at)s::bigint)
), {page_of_jobs}, {looked_at_source}, {described_jobs}

-- name: jobs_of_actor
-- See `jobs`: those of an actor, and those with a stage of the actor, each once. Caller: queries.jobs. Rows: as in `jobs`.
WITH {created_span}, source AS NOT MATERIALIZED (
    SELECT s.root AS id, {filtered_columns}
    FROM (
        SELECT s.*, coalesce(s.parent_id, s.id) AS root FROM callboard.jobs AS s
        WHERE s.actor = %(actor)s::text AND s.deleted_at IS NULL
          AND coalesce(s.parent_id, s.id) >= (SELECT low FROM span)
          AND coalesce(s.parent_id, s.id) <= (SELECT high FROM span)
          AND (s.parent_id IS NULL OR NOT EXISTS (
              SELECT FROM callboard.jobs AS b
              WHERE b.parent_id = s.parent_id AND b.stage < s.stage AND b.actor = s.actor OFFSET 0))
        ORDER BY coalesce(s.parent_id, s.id) DESC LIMIT (SELECT %(look_at)s::bigint)
    ) AS s
    CROSS JOIN LATERAL (
        SELECT {filtered_columns} FROM (SELECT s.*) AS j WHERE s.parent_id IS NULL
        UNION ALL
        SELECT {filtered_columns} FROM callboard.jobs AS j WHERE j.id = s.parent_id
    ) AS j
    ORDER BY s.root DESC
), {page_of_jobs}, {looked_at_source}, {described_jobs}

-- name: jobs_of_tenant
-- See `jobs`: those of a tenant. Caller: queries.jobs. Rows: as in `jobs`.
WITH {created_span}, source AS NOT MATERIALIZED (
    SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
    WHERE j.tenant = %(tenant)s::text AND j.parent_id IS NULL AND j.deleted_at IS NULL
      AND (j.tenant, j.id) >= (%(tenant)s::text, (SELECT low FROM span))
      AND (j.tenant, j.id) <= (%(tenant)s::text, (SELECT high FROM span))
    ORDER BY j.tenant DESC, j.id DESC LIMIT (SELECT %(look_at)s::bigint)
), {page_of_jobs}, {looked_at_source}, {described_jobs}

-- name: jobs_of_state
-- See `jobs`: those that ended in one state. It is compared by >= and <=: with =, the planner may use the order of the
-- primary key, and read all newer jobs of other states first. Caller: queries.jobs. Rows: as in `jobs`.
WITH {created_span}, source AS NOT MATERIALIZED (
    SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
    WHERE j.state >= %(state)s::callboard.job_state AND j.state <= %(state)s::callboard.job_state
      AND j.finished_at IS NOT NULL AND j.parent_id IS NULL AND j.deleted_at IS NULL
      AND (j.state, j.id) >= (%(state)s::callboard.job_state, (SELECT low FROM span))
      AND (j.state, j.id) <= (%(state)s::callboard.job_state, (SELECT high FROM span))
    ORDER BY j.state DESC, j.id DESC LIMIT (SELECT %(look_at)s::bigint)
), {page_of_jobs}, {looked_at_source}, {described_jobs}

-- name: jobs_failing
-- See `jobs`: those that may be failing: ended ones by their index, and all open ones.
-- Caller: queries.jobs. Rows: as in `jobs`.
WITH {created_span}, source AS NOT MATERIALIZED (
    SELECT * FROM (
        (SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
         WHERE j.failed_at IS NOT NULL AND j.parent_id IS NULL AND j.deleted_at IS NULL AND {in_span}
         ORDER BY j.id DESC LIMIT (SELECT %(look_at)s::bigint))
        UNION ALL
        (SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
         WHERE j.finished_at IS NULL AND j.parent_id IS NULL AND {in_span}
         ORDER BY j.id DESC LIMIT (SELECT %(look_at)s::bigint))
    ) AS j ORDER BY j.id DESC LIMIT (SELECT %(look_at)s::bigint)
), {page_of_jobs}, {looked_at_source}, {described_jobs}

-- name: jobs_of_sends
-- See `jobs`: the standing jobs. Caller: queries.jobs. Rows: as in `jobs`.
WITH {created_span}, source AS NOT MATERIALIZED (
    SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
    WHERE j.standing_on IS NOT NULL AND j.parent_id IS NULL AND {in_span}
    ORDER BY j.id DESC LIMIT (SELECT %(look_at)s::bigint)
), {page_of_jobs}, {looked_at_source}, {described_jobs}

-- part: created_span
-- The range of ids of the page. Jobs get their ids in the order of their creation, except at the same moment, or after the
-- clock was set back. So a time limits the ids, with a margin of a hundred jobs.
span AS MATERIALIZED (
    SELECT CASE WHEN created.after IS NULL THEN %(low)s::bigint ELSE coalesce((
               SELECT min(id) FROM (
                   SELECT j.id FROM callboard.jobs AS j WHERE j.parent_id IS NULL AND j.created_at >= created.after
                   ORDER BY j.created_at LIMIT 100
               ) AS near), %(high)s::bigint + 1) END AS low,
           CASE WHEN created.before IS NULL THEN %(high)s::bigint ELSE least(%(high)s::bigint, (
               SELECT coalesce(max(id), -1) FROM (
                   SELECT j.id FROM callboard.jobs AS j WHERE j.parent_id IS NULL AND j.created_at < created.before
                   ORDER BY j.created_at DESC LIMIT 100
               ) AS near)) END AS high,
           created.after, created.before,
           coalesce(%(ended_after)s::timestamptz, now() - %(ended_after_ago)s::interval) AS ended_after
    FROM (SELECT coalesce(%(created_after)s::timestamptz, now() - %(created_after_ago)s::interval) AS after,
                 coalesce(%(created_before)s::timestamptz, now() - %(created_before_ago)s::interval) AS before) AS created
)

-- part: in_span
-- Whether the id of the job `j` is in the range of the page.
j.id >= (SELECT low FROM span) AND j.id <= (SELECT high FROM span)

-- part: filtered_columns
-- The columns of a job `j` that filters read.
j.name, j.actor, j.tenant, j.key, j.state, j.stopping, j.metadata, j.standing_on, j.created_at, j.updated_at, j.finished_at, j.stages,
j.parent_id, j.stage, j.maker, j.sealed, j.held, j.total, j.succeeded, j.failed, j.skipped, j.cancelled

-- part: page_of_jobs
-- The jobs of `source` for which all filters hold, `limit` at most.
{at_work}, page AS MATERIALIZED (
    SELECT j.id FROM source AS j CROSS JOIN {no_stage_before}
    WHERE (%(states)s::callboard.job_state[] IS NULL OR j.state = ANY (%(states)s::callboard.job_state[]))
      AND (%(tenant)s::text IS NULL OR j.tenant = %(tenant)s::text)
      AND (%(key)s::text IS NULL OR j.key = %(key)s::text)
      AND (%(actor)s::text IS NULL OR j.actor = %(actor)s::text OR j.stages IS NOT NULL AND EXISTS (
          SELECT FROM callboard.jobs AS s WHERE s.parent_id = j.id AND s.actor = %(actor)s::text OFFSET 0))
      AND (%(standing)s::bool IS NULL OR (j.standing_on IS NOT NULL) = %(standing)s::bool)
      AND (%(failing)s::bool IS NULL OR %(failing)s::bool = {is_failing})
      AND (%(stalled)s::bool IS NULL OR %(stalled)s::bool = {is_stalled})
      AND (%(created_after)s::timestamptz IS NULL AND %(created_after_ago)s::interval IS NULL
           OR j.created_at >= (SELECT after FROM span))
      AND (%(created_before)s::timestamptz IS NULL AND %(created_before_ago)s::interval IS NULL
           OR j.created_at < (SELECT before FROM span))
      AND (%(ended_after)s::timestamptz IS NULL AND %(ended_after_ago)s::interval IS NULL
           OR j.finished_at >= (SELECT ended_after FROM span))
      AND (%(names)s::text[] = '{}' OR lower(j.name) LIKE ALL (ARRAY(SELECT lower(p) FROM unnest(%(names)s::text[]) AS p)))
      AND (%(fields)s::text[] = '{}'
           OR (j.metadata ->> (%(fields)s::text[])[1]) = (%(values)s::text[])[1]  -- first, because most jobs differ in it
           AND NOT EXISTS (SELECT FROM unnest(%(fields)s::text[], %(values)s::text[]) AS m (field, value)
                           WHERE (j.metadata ->> m.field) IS DISTINCT FROM m.value OFFSET 0))
    ORDER BY j.id DESC LIMIT %(limit)s
)

-- part: looked_at_source
-- The last job that was examined, if fewer than `limit` were found and there may be more.
looked AS (
    SELECT min(id) AS looked_at FROM (SELECT id FROM source WHERE (SELECT count(*) FROM page) < %(limit)s) AS s
    HAVING count(*) >= %(look_at)s
)

-- part: described_jobs
-- The jobs of `page` with all data for their description (job_view.py), then their stages, in one snapshot.
-- Items are not counted, and at most one is read: a job of ten million items costs the same as one of ten.
-- An ended job has no rows in `running`, and its samples are not read: the condition is inside the lookups, because a
-- condition of the join would be checked only after them.
-- Rows: one per job or stage, or else one without an id; `moved_at` to `elsewhere` are NULL unless the job stands still,
-- `hung` (at most ten items, the longest running first) is NULL unless an item hangs.
shown AS MATERIALIZED (
    SELECT j.*, false AS within FROM page JOIN callboard.jobs AS j ON j.id = page.id
    UNION ALL
    SELECT s.*, true FROM page JOIN callboard.jobs AS s ON s.parent_id = page.id
), able_workers AS MATERIALIZED (
    -- For all live workers (actor NULL), and for those that have an actor of these jobs: how many, their trouble, the items
    -- that they run, and whether any consumes the job's queue. There may be many workers with many actors, so actors of
    -- other jobs are removed first.
    SELECT a.actor, p.queue, count(*) AS able, max(w.trouble) AS trouble, coalesce(sum(r.items), 0)::bigint AS items,
           bool_or(p.queue = ANY (w.queues)) AS taken
    FROM living AS w
    LEFT JOIN (SELECT worker, count(*) AS items FROM callboard.running GROUP BY worker) AS r ON r.worker = w.id
    CROSS JOIN LATERAL (
        SELECT NULL AS actor UNION ALL
        SELECT DISTINCT n FROM unnest(w.actors) AS n WHERE n IN (SELECT actor FROM shown)  -- hashed
    ) AS a
    LEFT JOIN (SELECT DISTINCT actor, queue FROM shown) AS p ON p.actor = a.actor
    GROUP BY a.actor, p.queue
), in_flight AS MATERIALIZED (
    -- For all jobs at once: if few jobs have nearly all rows of `running`, the planner would read all of it for each lookup.
    SELECT r.job_id, count(*) AS in_hand, {done_in_part} AS in_part, count(r.stack) AS hanging
    FROM shown AS j JOIN callboard.running AS r ON r.job_id = j.id WHERE j.finished_at IS NULL GROUP BY r.job_id
)
SELECT j.id, j.name, j.tenant, j.actor, j.queue, j.state, j.stopping, j.reason, j.sealed, j.consumed,
       j.total, j.published, j.in_turn, j.retrying, j.succeeded, j.failed, j.skipped, j.cancelled, j.retries, j.crashes, j.unkept,
       j.step, j.parent_id, j.stage, j.stages, j.on_failure, j.maker, j.held, j.holds, j.not_before, j.limits, j.metadata,
       j.created_by, j.created_at, j.started_at, j.finished_at, j.updated_at, j.control_at,
       coalesce(j.key, (SELECT p.key FROM callboard.jobs AS p WHERE p.id = j.parent_id)) AS key,
       j.standing_on IS NOT NULL AS standing, j.submitting_until > now() AS submitting, now() AS read_at,
       j.rate_ready + make_interval(secs => 1 / j.rate) AS next_start, j.within,
       coalesce(flight.in_hand, 0) AS in_hand, coalesce(flight.in_part, 0) AS in_part,
       sample.taken_at AS sampled_at, sample.final AS sampled_final, sample.in_part AS sampled_in_part,
       still.moved_at, still.alive, still.able, still.taken, still.due_at, still.missing, still.trouble, still.elsewhere,
       hanging.hung, (SELECT looked_at FROM looked) AS looked_at
FROM (SELECT) AS one
LEFT JOIN shown AS j ON true
LEFT JOIN in_flight AS flight ON flight.job_id = j.id
LEFT JOIN LATERAL ({stage_before}) AS before ON true
LEFT JOIN LATERAL (
    (SELECT s.taken_at, s.final, s.in_part FROM callboard.samples AS s
     WHERE j.finished_at IS NULL AND s.job_id = j.id AND s.taken_at BETWEEN now() - interval '30 seconds' AND now() - interval '2 seconds'
     ORDER BY s.taken_at LIMIT 1)
    UNION ALL
    (SELECT s.taken_at, s.final, s.in_part FROM callboard.samples AS s
     WHERE j.finished_at IS NULL AND s.job_id = j.id AND s.taken_at < now() - interval '30 seconds'
     ORDER BY s.taken_at DESC LIMIT 1)
    ORDER BY taken_at DESC LIMIT 1
) AS sample ON true
LEFT JOIN LATERAL (
    SELECT greatest(j.updated_at, before.ended) AS moved_at, coalesce((SELECT able FROM able_workers WHERE actor IS NULL), 0) AS alive,
           coalesce(w.able, 0) AS able, w.taken, w.trouble, coalesce(w.items, 0) AS elsewhere,
           (SELECT min(o.due_at) FROM callboard.turns AS t CROSS JOIN LATERAL (
                SELECT o.due_at FROM callboard.outbox AS o
                WHERE o.job_id = t.job_id AND o.queue = t.queue AND o.claimed_until IS NULL
                  AND o.due_at < timestamptz '9999-01-01Z' ORDER BY o.due_at LIMIT 1
            ) AS o WHERE t.job_id = j.id) AS due_at,
           (SELECT o.awaits FROM callboard.outbox AS o
            WHERE o.job_id = j.id AND o.due_at = timestamptz '9999-01-01Z' ORDER BY o.item LIMIT 1) AS missing
    FROM (SELECT) AS one
    LEFT JOIN LATERAL (
        SELECT * FROM able_workers AS h WHERE h.actor = j.actor AND h.queue IS NOT DISTINCT FROM j.queue
        UNION ALL SELECT * FROM able_workers AS h WHERE h.actor IS NULL AND j.actor IS NULL
    ) AS w ON true
    WHERE {stands_still}
    OFFSET 0  -- otherwise all of this would be looked up for every job
) AS still ON true
LEFT JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_object('item', h.item, 'seconds', h.seconds, 'worker', h.worker, 'place', h.place)) AS hung
    FROM (
        SELECT r.item, r.worker, CASE WHEN t.seconds < 10 THEN t.seconds ELSE 10 * floor(t.seconds / 10) END AS seconds, r.place
        FROM callboard.running AS r
        CROSS JOIN LATERAL (SELECT floor(extract(epoch FROM now() - r.started_at)) AS seconds) AS t
        WHERE flight.hanging > 0 AND r.job_id = j.id AND r.stack IS NOT NULL ORDER BY r.started_at LIMIT 10
    ) AS h
) AS hanging ON true
ORDER BY j.within, j.id DESC

-- part: at_work
-- The live workers, and the jobs whose items they run.
living AS MATERIALIZED (
    SELECT id, actors, queues, trouble FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s)
), worked_on AS MATERIALIZED (
    SELECT r.job_id FROM callboard.running AS r WHERE r.worker IN (SELECT id FROM living)
)

-- part: is_stalled
-- Whether the job `j`, which is no stage, stands still. A job of stages does if its first open stage does.
CASE WHEN j.stages IS NULL THEN {stands_still} ELSE coalesce((
    SELECT {stands_still} FROM (
        SELECT s.* FROM callboard.jobs AS s WHERE s.parent_id = j.id AND s.finished_at IS NULL ORDER BY s.stage LIMIT 1
    ) AS j LEFT JOIN LATERAL ({stage_before}) AS before ON true), false) END

-- part: stands_still
-- Whether the job `j` is open and has not changed for a while, although it has waiting items or may get items, and no live
-- worker runs or makes its items. `before`: the stage before it, if it is a stage: a stage can't stand still before that
-- ends. In a job that is being stopped, only items of a dead worker wait.
(j.finished_at IS NULL AND j.state <> 'paused'
 AND greatest(j.updated_at, before.ended) < now() - make_interval(secs => %(QUIET_AFTER_SECONDS)s)
 AND j.id NOT IN (SELECT job_id FROM worked_on)  -- hashed
 AND (j.maker IN (SELECT id FROM living)) IS NOT TRUE
 AND (j.held OR NOT j.sealed AND j.standing_on IS NULL AND (coalesce(j.stage, 0) = 0 OR before.ended IS NOT NULL)
      OR CASE WHEN j.stopping IS NULL THEN j.total > j.succeeded + j.failed + j.skipped + j.cancelled
              ELSE j.total > j.succeeded + j.failed + j.skipped
                   AND EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = j.id) END))

-- part: stage_before
-- When the stage before the stage `j` ended.
SELECT b.finished_at AS ended FROM callboard.jobs AS b WHERE b.parent_id = j.parent_id AND b.stage = j.stage - 1 OFFSET 0

-- part: no_stage_before
-- The replacement of `stage_before` for a job that is no stage.
(SELECT NULL::timestamptz AS ended) AS before

-- part: done_in_part
-- The sum of the reported progress of items in flight, in items: from the rows `r` of `running` with a progress.
-- Very small progress counts as 0, because a quotient out of range is an error.
coalesce(sum(CASE WHEN r.progress_done > r.progress_total * 1e-9 THEN least(r.progress_done / r.progress_total, 0.99) ELSE 0 END)
         FILTER (WHERE r.progress_total > 1e-9), 0)

-- name: job_counts
-- How many jobs the views of a page show. The jobs of a tenant are counted by index entries, and its open ones are read. For
-- all tenants, the open jobs are read, and the totals of the ended ones. Recently ended jobs are read if they may be failing.
-- Caller: queries.job_counts. Rows: one, (open, stalled, ended, failed among those that ended within a day).
WITH {at_work}, known AS MATERIALIZED (
    SELECT array_agg(j.id) FILTER (WHERE j.state IN ('pending', 'running', 'paused')) AS open,
           count(*) FILTER (WHERE j.state IN ('completed', 'failed', 'cancelled')) AS ended
    FROM callboard.jobs AS j
    WHERE j.tenant = %(tenant)s::text AND j.parent_id IS NULL AND j.deleted_at IS NULL HAVING %(tenant)s::text IS NOT NULL
)
SELECT open.jobs AS open, open.stalled, one.ended,
       (SELECT count(*) FROM callboard.jobs AS j
        WHERE j.failed_at >= now() - interval '1 day' AND j.parent_id IS NULL AND j.deleted_at IS NULL
          AND (%(tenant)s::text IS NULL OR j.tenant = %(tenant)s::text) AND {is_failing}) AS failed_today
FROM (
    SELECT ended FROM known
    UNION ALL
    SELECT (SELECT coalesce(sum(t.jobs), 0)::bigint FROM callboard.totals AS t) WHERE %(tenant)s::text IS NULL
) AS one
CROSS JOIN (
    SELECT count(*) AS jobs, count(*) FILTER (WHERE {is_stalled}) AS stalled FROM (
        SELECT j.id, {filtered_columns} FROM callboard.jobs AS j
        WHERE %(tenant)s::text IS NULL AND j.finished_at IS NULL AND j.parent_id IS NULL
        UNION ALL
        SELECT j.id, {filtered_columns} FROM known CROSS JOIN unnest(known.open) AS o (id)
        CROSS JOIN LATERAL (SELECT * FROM callboard.jobs AS j WHERE j.id = o.id OFFSET 0) AS j
    ) AS j CROSS JOIN {no_stage_before}
) AS open

-- part: is_failing
-- Whether the job `j` failed, or has failed items.
(j.failed > 0 OR j.state = 'failed' OR j.stages IS NOT NULL AND EXISTS (
    SELECT FROM callboard.jobs AS s WHERE s.parent_id = j.id AND s.failed > 0 OFFSET 0))

-- name: job_of_tenant
-- Whether this tenant has this job. Caller: queries.is_of_tenant. Rows: one, or none.
SELECT FROM callboard.jobs WHERE id = %(job)s AND tenant = %(tenant)s AND deleted_at IS NULL

-- name: job_items
-- A page of a job's items by number: with one described state (failed ones also with one `error`), with one of two `keys`
-- (`state` is 'key' then), or all. One item: `after` = item - 1.
-- States that are rare in a large job are found in the tables with few rows (attempts, running, outbox), not in items:
-- OFFSET 0 prevents a plan that begins with the items, when the planner has no statistics of a new job.
-- Other states are searched in a limited number of items, because no index has the state of an item; failed and skipped
-- items in a limited number of attempts, some of which were retried. `looked_at` is the last examined item if there are more.
-- Caller: queries.items, queries.item. Rows: one per item, at least one of the job; `args` and `result` are cut at `cap`.
WITH job AS (
    SELECT j.watermark, CASE WHEN j.held THEN j.total ELSE j.bulk_end END AS bulk_end, j.actor, e.over, e.ends, %(after)s::bigint + %(look_at)s::bigint AS last_look,
           CASE %(state)s::text
               WHEN 'succeeded' THEN j.succeeded > 0
               WHEN 'queued' THEN NOT e.ends AND l.items > j.retrying
               WHEN 'cancelled' THEN j.cancelled > 0 OR e.ends AND l.items > 0
           END AS looks,
           CASE %(state)s::text WHEN 'failed' THEN j.failed > 0 WHEN 'skipped' THEN j.skipped > 0 END AS looks_at_tries,
           j.total
    FROM callboard.jobs AS j
    CROSS JOIN LATERAL (SELECT finished_at IS NOT NULL AS over, finished_at IS NOT NULL OR stopping IS NOT NULL AS ends) AS e
    CROSS JOIN LATERAL (SELECT total - succeeded - failed - skipped - j.cancelled AS items) AS l
    WHERE j.id = %(job)s AND j.deleted_at IS NULL
), groups AS MATERIALIZED (
    SELECT e.kind, e.error_type, e.place, e.pattern FROM callboard.errors AS e WHERE e.job_id = %(job)s AND {is_error}
), tries AS NOT MATERIALIZED (
    SELECT a.item, a.attempt, a.retried, a.kind, a.error_type, a.place, a.pattern FROM callboard.attempts AS a
    WHERE (SELECT looks_at_tries FROM job) AND a.job_id = %(job)s AND a.item > %(after)s
    ORDER BY a.item LIMIT (SELECT %(look_at_tries)s::bigint)
), wanted AS MATERIALIZED (
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text = 'key' AND i.job_id = %(job)s AND i.item_key = ANY (%(keys)s::text[]) AND i.item > %(after)s
       AND (%(error)s::text IS NULL OR i.state = 'failed' AND EXISTS (
           SELECT FROM callboard.attempts AS a
           WHERE a.job_id = i.job_id AND a.item = i.item AND a.attempt = i.attempt
             AND (a.kind, a.error_type, a.place, a.pattern) IN (SELECT * FROM groups))))
    UNION ALL
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text IS NULL AND i.job_id = %(job)s AND i.item > %(after)s
     ORDER BY i.item LIMIT %(limit)s)
    UNION ALL
    (SELECT a.item FROM tries AS a
     CROSS JOIN LATERAL (
         SELECT state, attempt FROM callboard.items AS i WHERE i.job_id = %(job)s AND i.item = a.item OFFSET 0
     ) AS i
     WHERE NOT a.retried AND a.attempt = i.attempt AND i.state::text = %(state)s::text
       AND (%(error)s::text IS NULL OR (a.kind, a.error_type, a.place, a.pattern) IN (SELECT * FROM groups))
     ORDER BY a.item LIMIT %(limit)s)
    UNION ALL
    (SELECT r.item FROM callboard.running AS r
     CROSS JOIN LATERAL (
         SELECT state FROM callboard.items AS i WHERE i.job_id = r.job_id AND i.item = r.item OFFSET 0
     ) AS i
     WHERE %(state)s::text = 'running' AND NOT (SELECT over FROM job) AND r.job_id = %(job)s AND r.item > %(after)s
       AND i.state IN ('waiting', 'retrying')
     ORDER BY r.item LIMIT %(limit)s)
    UNION ALL
    (SELECT o.item FROM callboard.outbox AS o
     CROSS JOIN LATERAL (
         SELECT state FROM callboard.items AS i WHERE i.job_id = o.job_id AND i.item = o.item OFFSET 0
     ) AS i
     WHERE %(state)s::text IN ('retrying', 'pending') AND NOT (SELECT ends FROM job)
       AND o.job_id = %(job)s AND o.item > %(after)s
       AND CASE %(state)s::text WHEN 'retrying' THEN i.state = 'retrying'
                                ELSE (o.first OR o.in_turn) AND i.state = 'waiting' END
       AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = o.job_id AND r.item = o.item OFFSET 0)
     ORDER BY o.item LIMIT %(limit)s)
    UNION ALL
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text = 'pending' AND NOT (SELECT ends FROM job) AND i.job_id = %(job)s
       AND i.item >= greatest(%(after)s + 1, (SELECT watermark FROM job)) AND i.item < (SELECT bulk_end FROM job)
       AND i.sent_at IS NULL AND i.state = 'waiting'
       AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item OFFSET 0)
     ORDER BY i.item LIMIT %(limit)s)
    UNION ALL
    (SELECT i.item FROM callboard.items AS i
     WHERE (SELECT looks FROM job) AND i.job_id = %(job)s AND i.item > %(after)s AND i.item <= (SELECT last_look FROM job)
       AND CASE %(state)s::text
           WHEN 'succeeded' THEN i.state = 'succeeded'
           WHEN 'queued' THEN
               i.state = 'waiting' AND (i.sent_at IS NOT NULL OR i.item < (SELECT watermark FROM job))
               AND NOT EXISTS (SELECT FROM callboard.outbox AS o
                               WHERE o.job_id = i.job_id AND o.item = i.item AND (o.first OR o.in_turn) OFFSET 0)
               AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item OFFSET 0)
           ELSE
               i.state = 'cancelled'
               OR (SELECT ends FROM job) AND i.state IN ('waiting', 'retrying')
                  AND NOT EXISTS (SELECT FROM callboard.running AS r
                                  WHERE r.job_id = i.job_id AND r.item = i.item AND NOT (SELECT over FROM job) OFFSET 0)
           END
     ORDER BY i.item LIMIT %(limit)s)
), page AS MATERIALIZED (
    SELECT DISTINCT item FROM wanted ORDER BY item LIMIT %(limit)s
), last_try AS (
    SELECT max(item) AS item FROM (SELECT item FROM tries WHERE (SELECT count(*) FROM page) < %(limit)s) AS t
    HAVING count(*) >= %(look_at_tries)s
)
SELECT page.item,
       CASE WHEN job.looks AND job.last_look < job.total - 1 THEN job.last_look ELSE (SELECT item FROM last_try) END
           AS looked_at,
       i.item_key AS key, coalesce(i.actor, job.actor) AS actor,
       CASE WHEN i.state IN ('succeeded', 'failed', 'skipped', 'cancelled') THEN i.state::text
            WHEN r.item IS NOT NULL THEN 'running'
            WHEN job.ends THEN 'cancelled'
            WHEN i.state = 'retrying' THEN 'retrying'
            WHEN o.first OR o.in_turn OR i.sent_at IS NULL AND i.item >= job.watermark THEN 'pending'
            ELSE 'queued' END AS state,
       coalesce(r.attempt, i.attempt) AS attempt, coalesce(i.crashes, 0) AS crashes, r.step,
       r.progress_done, r.progress_total, r.stack, coalesce(r.worker, i.worker) AS worker,
       coalesce(first.started_at, r.started_at, i.started_at) AS first_started_at,
       coalesce(r.started_at, i.started_at) AS started_at, i.finished_at, i.sent_at,
       CASE WHEN o.due_at < 'infinity' THEN o.due_at END AS due_at,
       substring(i.args FROM 1 FOR %(cap)s) AS args, octet_length(i.args) AS args_size,
       left(v.value, %(cap)s) AS result, length(v.value) AS result_size, left(v.unkept, %(cap)s) AS result_unkept,
       e.kind::text AS error_kind, e.error_type, left(e.message, %(cap)s) AS error_message, e.place AS error_place
FROM job
LEFT JOIN page ON true
LEFT JOIN LATERAL (
    SELECT * FROM callboard.items AS i WHERE i.job_id = %(job)s AND i.item = page.item OFFSET 0
) AS i ON true
LEFT JOIN LATERAL (
    SELECT * FROM callboard.running AS r
    WHERE r.job_id = i.job_id AND r.item = i.item AND i.state IN ('waiting', 'retrying') AND NOT job.over OFFSET 0
) AS r ON true
LEFT JOIN callboard.outbox AS o ON o.job_id = i.job_id AND o.item = i.item
LEFT JOIN LATERAL (
    SELECT * FROM callboard.results AS v WHERE v.job_id = i.job_id AND v.item = i.item OFFSET 0
) AS v ON true
LEFT JOIN LATERAL (
    SELECT * FROM callboard.attempts AS a
    WHERE a.job_id = i.job_id AND a.item = i.item AND i.state <> 'succeeded' ORDER BY a.attempt DESC LIMIT 1
) AS e ON true
LEFT JOIN LATERAL (
    SELECT a.started_at FROM callboard.attempts AS a
    WHERE a.job_id = i.job_id AND a.item = i.item AND i.attempt > 1 ORDER BY a.attempt LIMIT 1
) AS first ON true
ORDER BY page.item

-- name: item_attempts
-- The attempts of an item that did not succeed, in order; `retried`: the item got another attempt, automatically or by
-- hand. Caller: queries.attempts.
SELECT a.attempt, a.kind::text AS kind, a.attempt < i.attempt AS retried, a.worker, a.started_at, a.ended_at,
       a.error_type AS type, a.place, left(a.message, %(cap)s) AS message, left(a.traceback, %(cap)s) AS traceback,
       a.traceback_size
FROM callboard.attempts AS a
JOIN callboard.items AS i ON i.job_id = a.job_id AND i.item = a.item
JOIN callboard.jobs AS j ON j.id = a.job_id AND j.deleted_at IS NULL
WHERE a.job_id = %(job)s AND a.item = %(item)s
ORDER BY a.attempt LIMIT %(limit)s

-- name: job_errors
-- The errors of a job, or of all of its stages, one row per group, those that failed most items first.
-- Caller: queries.errors.
SELECT {error_columns}
FROM callboard.jobs AS j JOIN callboard.errors AS e ON e.job_id = j.id
WHERE (j.id = %(job)s OR j.parent_id = %(job)s) AND j.deleted_at IS NULL
ORDER BY j.stage, e.failed DESC, e.count DESC, e.kind, e.error_type, e.place, e.pattern LIMIT %(limit)s

-- name: job_error
-- One group of errors of a job, or of one of its stages, with the traceback of its example. Caller: queries.error.
-- Rows: one, or none.
SELECT {error_columns}, a.attempt, left(a.traceback, %(cap)s) AS traceback, a.traceback_size
FROM callboard.jobs AS j
JOIN callboard.errors AS e ON e.job_id = j.id
LEFT JOIN LATERAL (
    SELECT * FROM callboard.attempts AS a
    WHERE a.job_id = e.job_id AND a.item = e.item AND a.kind = e.kind AND a.error_type = e.error_type
      AND a.place = e.place AND a.pattern = e.pattern ORDER BY a.message = e.message DESC, a.attempt DESC LIMIT 1
) AS a ON true
WHERE (j.id = %(job)s OR j.parent_id = %(job)s) AND j.deleted_at IS NULL AND {error_id} = %(error)s

-- part: error_columns
-- The columns that describe a group of errors `e` of the job `j`.
{error_id} AS id, e.job_id AS job, j.stage, e.kind::text AS kind, e.error_type AS type, e.place,
nullif(e.pattern, '') AS pattern, e.count, e.failed, e.count - e.failed AS retried, e.first_at, e.last_at, e.item,
left(e.message, %(cap)s) AS message

-- part: error_id
-- The id of a group of errors `e`. It depends on the job: equal groups of two stages have different ids.
left(encode(sha256(convert_to(concat_ws(chr(31), e.job_id, e.kind, e.error_type, e.place, e.pattern), 'UTF8')), 'hex'), 16)

-- part: is_error
-- Whether the parameter `error` selects the group of errors `e`: by its id, or by its type with or without the module.
%(error)s IN ({error_id}, e.error_type, regexp_replace(e.error_type, '^.*[.]', ''))

-- name: samples
-- The history of a job, or of its stages together, from its start to its end or to now: the samples nearest to `steps` equal
-- steps, so a job of months costs the same as one of hours. Caller: queries.samples. Rows: one per point, in order of time.
WITH job AS MATERIALIZED (
    SELECT j.id, j.started_at, j.finished_at, j.succeeded + j.failed + j.skipped AS ended, j.failed FROM callboard.jobs AS j
    WHERE (j.id = %(job)s OR j.parent_id = %(job)s) AND j.deleted_at IS NULL
), span AS MATERIALIZED (
    SELECT min(started_at) AS since, CASE WHEN bool_and(finished_at IS NOT NULL) THEN max(finished_at) ELSE now() END AS until
    FROM job
), point AS MATERIALIZED (
    SELECT since AS at FROM span
    UNION
    SELECT until FROM span WHERE since IS NOT NULL
    UNION
    SELECT (SELECT max(s.taken_at) FROM job CROSS JOIN LATERAL (
                SELECT s.taken_at FROM callboard.samples AS s
                WHERE s.job_id = job.id AND s.taken_at <= span.since + (span.until - span.since) * n / %(steps)s
                ORDER BY s.taken_at DESC LIMIT 1) AS s)
    FROM span CROSS JOIN generate_series(1, %(steps)s) AS n WHERE span.until > span.since
)
SELECT point.at, sum(CASE WHEN whether.over THEN job.ended ELSE coalesce(s.final, 0) END)::bigint AS ended,
       sum(CASE WHEN whether.over THEN job.failed ELSE coalesce(s.failed, 0) END)::bigint AS failed
FROM span JOIN point ON point.at BETWEEN span.since AND span.until
CROSS JOIN job
CROSS JOIN LATERAL (SELECT span.until = point.at OR job.finished_at <= point.at AS over) AS whether
LEFT JOIN LATERAL (
    SELECT s.final, s.failed FROM callboard.samples AS s
    WHERE s.job_id = job.id AND s.taken_at <= point.at ORDER BY s.taken_at DESC LIMIT 1
) AS s ON true
GROUP BY point.at ORDER BY point.at

-- name: paces
-- The last samples of some jobs, in order of time. Caller: queries.paces. Rows: one per sample, at most `most` per job.
SELECT j.job, s.taken_at AS at, s.final AS ended
FROM unnest(%(jobs)s::bigint[]) AS j (job)
CROSS JOIN LATERAL (
    SELECT s.taken_at, s.final FROM callboard.samples AS s WHERE s.job_id = j.job ORDER BY s.taken_at DESC LIMIT %(most)s
) AS s
ORDER BY j.job, s.taken_at

-- name: lanes
-- Lanes of a job: first those with most items in flight, then those with messages in the outbox, found by one index step
-- each. At most `most` waiting items of a lane are counted. Caller: queries.lanes. Rows: one per lane, at most `limit`.
WITH RECURSIVE in_lanes AS MATERIALIZED (
    SELECT l.lane, count(*) AS in_flight FROM callboard.lanes AS l WHERE l.job_id = %(job)s
    GROUP BY l.lane ORDER BY count(*) DESC, l.lane LIMIT %(limit)s
), waiting_lanes (lane, nth) AS (
    (SELECT o.lane, 1 FROM callboard.outbox AS o
     WHERE o.job_id = %(job)s AND o.lane IS NOT NULL ORDER BY o.lane LIMIT 1)
    UNION ALL
    SELECT (SELECT o.lane FROM callboard.outbox AS o
            WHERE o.job_id = %(job)s AND o.lane > w.lane ORDER BY o.lane LIMIT 1), w.nth + 1
    FROM waiting_lanes AS w WHERE w.lane IS NOT NULL AND w.nth < %(limit)s
)
SELECT one.lane, one.in_flight, j.lane_width AS width, waiting.items AS waiting
FROM callboard.jobs AS j
CROSS JOIN (
    SELECT lane, in_flight FROM in_lanes
    UNION ALL
    SELECT lane, 0 FROM waiting_lanes WHERE lane IS NOT NULL AND lane NOT IN (SELECT lane FROM in_lanes)
) AS one
CROSS JOIN LATERAL (
    SELECT count(*) AS items FROM (
        SELECT FROM callboard.outbox AS o WHERE o.job_id = %(job)s AND o.lane = one.lane LIMIT %(most)s
    ) AS o
) AS waiting
WHERE j.id = %(job)s AND j.deleted_at IS NULL AND j.lane_width IS NOT NULL
ORDER BY one.in_flight DESC, waiting.items DESC, one.lane LIMIT %(limit)s

-- name: retried_items
-- How many items of a job, or of its stages, a retry would select. All items of a state or of an error are counted by the
-- counters of the job and of its groups of errors; only items given by number are read.
-- Caller: queries.retried_items. Rows: one.
WITH job AS MATERIALIZED (
    SELECT j.id, j.finished_at IS NOT NULL AS over, j.failed, j.skipped,
           CASE WHEN j.finished_at IS NULL THEN j.cancelled ELSE j.total - j.succeeded - j.failed - j.skipped END AS cancelled
    FROM callboard.jobs AS j WHERE (j.id = %(job)s OR j.parent_id = %(job)s) AND j.deleted_at IS NULL
), groups AS MATERIALIZED (
    SELECT e.* FROM job AS j JOIN callboard.errors AS e ON e.job_id = j.id WHERE {is_error}
)
SELECT coalesce(CASE
    WHEN %(items)s::int[] IS NOT NULL THEN (
        SELECT count(*) FROM job AS j JOIN callboard.items AS i ON i.job_id = j.id AND i.item = ANY (%(items)s::int[])
        WHERE (i.state::text = ANY (%(states)s::text[])
               OR 'cancelled' = ANY (%(states)s::text[]) AND j.over AND i.state IN ('waiting', 'retrying'))
          AND (%(error)s::text IS NULL OR EXISTS (
              SELECT FROM callboard.attempts AS a
              JOIN groups AS g ON g.job_id = a.job_id AND g.kind = a.kind AND g.error_type = a.error_type
                              AND g.place = a.place AND g.pattern = a.pattern
              WHERE a.job_id = i.job_id AND a.item = i.item AND a.attempt = i.attempt)))
    WHEN %(error)s::text IS NOT NULL THEN (SELECT sum(failed) FROM groups)
    ELSE (
        SELECT sum(CASE WHEN 'failed' = ANY (%(states)s::text[]) THEN j.failed ELSE 0 END
                   + CASE WHEN 'skipped' = ANY (%(states)s::text[]) THEN j.skipped ELSE 0 END
                   + CASE WHEN 'cancelled' = ANY (%(states)s::text[]) THEN j.cancelled ELSE 0 END) FROM job AS j)
    END, 0)::bigint AS items

-- name: job_actions
-- The actions on a job, the latest first. Caller: queries.actions. Rows: one per action.
SELECT id, done_at, action, who, via, address, detail FROM callboard.actions
WHERE job_id = %(job)s AND id < %(before)s
  AND EXISTS (SELECT FROM callboard.jobs AS j WHERE j.id = %(job)s AND j.deleted_at IS NULL)
ORDER BY id DESC LIMIT %(limit)s

-- name: job_callbacks
-- The callbacks of a job's ends, the latest end first, and their delivery. Caller: queries.callbacks.
-- Rows: one per callback.
SELECT id::text, state::text AS "on", url, actor,
       CASE WHEN delivered_at IS NOT NULL THEN 'delivered' WHEN gave_up_at IS NOT NULL THEN 'gave up' ELSE 'waiting' END AS state,
       tries, error, created_at, coalesce(delivered_at, gave_up_at) AS finished_at,
       CASE WHEN delivered_at IS NULL AND gave_up_at IS NULL THEN greatest(due_at, claimed_until) END AS due_at
FROM callboard.callbacks WHERE job_id = %(job)s
ORDER BY ended_at DESC, url NULLS FIRST, actor, id LIMIT %(limit)s

-- name: token
-- The valid token of one of these kinds with this secret. Caller: queries.token.
-- Rows: one, or none. `unnoted`: its last recorded use is more than a minute ago.
SELECT {token_columns}, coalesce(t.used_at < now() - interval '1 minute', true) AS unnoted
FROM callboard.tokens AS t WHERE t.digest = %(digest)s AND t.kind = ANY (%(kinds)s) AND {token_lives}

-- name: tokens
-- The valid tokens, the latest first. Caller: queries.tokens. Rows: one per token.
SELECT {token_columns} FROM callboard.tokens AS t
WHERE t.id < %(before)s AND (%(tenant)s::text IS NULL OR t.tenant = %(tenant)s) AND {token_lives}
ORDER BY t.id DESC LIMIT %(limit)s

-- name: any_login
-- Whether there is a valid token for more than one job. Caller: queries.any_login. Rows: one, if so.
SELECT 1 AS found FROM callboard.tokens AS t WHERE t.kind <> 'share' AND {token_lives} LIMIT 1

-- name: workers
-- Worker processes, the latest first. Caller: queries.workers.
-- Rows: one per worker; a worker whose heartbeat stopped is dead, even before a sweep has found it.
SELECT id, host, pid, threads, release, cardinality(held_items) AS held, actors, queues, started_at, beat_at, state,
       CASE WHEN state = 'alive' THEN trouble END AS trouble, coalesce(stopped_at, died_at) AS ended_at
FROM (
    SELECT *, CASE WHEN stopped_at IS NOT NULL THEN 'stopped'
                   WHEN died_at IS NOT NULL OR beat_at < now() - make_interval(secs => %(DEAD_AFTER_SECONDS)s) THEN 'dead'
                   ELSE 'alive' END AS state
    FROM callboard.workers WHERE id < %(before)s
) AS w
WHERE %(state)s::text IS NULL OR state = %(state)s::text
ORDER BY id DESC LIMIT %(limit)s

-- name: server
-- The database's clock, the pid of this server process, and whether it refuses writes, like a standby. Must run outside of a
-- read-only transaction. Caller: queries.server. Rows: one.
SELECT clock_timestamp() AS now, pg_backend_pid() AS pid, current_setting('transaction_read_only')::boolean AS read_only

-- name: long_locks
-- Sessions that block others on our tables. Another session has waited for it for `seconds`; or it has had a table locked
-- against readers for so long, in a statement or idle; or it has been idle for so long with locks in jobs or items, for
-- which other sessions wait only briefly and retry. Sessions that themselves wait so long are left out. Caller:
-- queries.long_locks. Rows: {pid, who, waiting: how many have waited, whole: whether readers of a whole table wait, or would}.
WITH ours AS (
    SELECT l.pid, l.granted, l.mode, c.relname FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation
    WHERE c.relnamespace = 'callboard'::regnamespace
), waits AS (
    SELECT l.pid, unnest(pg_blocking_pids(l.pid)) AS holder FROM pg_locks AS l
    WHERE l.waitstart < clock_timestamp() - make_interval(secs => %(seconds)s) AND l.pid IN (SELECT pid FROM ours)
), sessions AS (
    SELECT *, state_change < clock_timestamp() - make_interval(secs => %(seconds)s) AS long FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid NOT IN (SELECT pid FROM waits)
), held AS (
    -- A session that waits to lock a whole table already blocks its readers. VACUUM locks a table briefly at its end.
    SELECT *, (SELECT count(DISTINCT w.pid) FROM waits AS w WHERE w.holder = s.pid) AS waiting,
           EXISTS (SELECT FROM waits AS w JOIN ours AS o ON o.pid = w.pid AND NOT o.granted
                   WHERE w.holder = s.pid AND o.mode IN ('AccessShareLock', 'AccessExclusiveLock'))
           OR coalesce(long, false) AND s.pid NOT IN (SELECT pid FROM pg_stat_progress_vacuum)
              AND EXISTS (SELECT FROM ours AS o WHERE o.pid = s.pid AND o.granted AND o.mode = 'AccessExclusiveLock')
           AS whole,
           long AND state = 'idle in transaction'
           AND EXISTS (SELECT FROM ours AS o WHERE o.pid = s.pid AND o.granted AND o.relname IN ('jobs', 'items')
                                               AND o.mode <> 'AccessShareLock') AS idle
    FROM sessions AS s
)
SELECT a.pid, {session} AS who, a.waiting, a.whole FROM held AS a WHERE a.waiting > 0 OR a.whole OR a.idle

-- name: queues
-- The queues of actors, as the last worker announced them, and of open jobs, with the number of items that these still have
-- to publish; all items of a job are counted for the job's own queue. Caller: queries.queues.
-- Rows: one per queue; `unserved`: its actors that no live worker has.
SELECT coalesce(a.queue, p.queue) AS name, array_agg(a.name ORDER BY a.name) FILTER (WHERE a.name IS NOT NULL) AS actors,
       array_agg(a.name ORDER BY a.name) FILTER (WHERE a.name IS NOT NULL AND l.name IS NULL) AS unserved,
       coalesce(max(p.items), 0)::bigint AS pending
FROM callboard.actors AS a
LEFT JOIN (
    SELECT DISTINCT unnest(actors) AS name FROM callboard.live_workers(%(DEAD_AFTER_SECONDS)s)
) AS l ON l.name = a.name
FULL JOIN (
    SELECT queue, sum(least(total - published + in_turn, total - succeeded - failed - skipped - cancelled)) AS items
    FROM callboard.jobs WHERE finished_at IS NULL AND stopping IS NULL AND queue IS NOT NULL GROUP BY queue
) AS p ON p.queue = a.queue
GROUP BY 1 ORDER BY 1

-- name: last_errors
-- The last recorded attempts of some items. Caller: queries.last_errors. Rows: one per item that has such an attempt.
SELECT w.job, w.item, j.tenant, e.kind::text AS kind, e.error_type AS type, left(e.message, %(cap)s) AS message
FROM unnest(%(jobs)s::bigint[], %(items)s::integer[]) AS w (job, item)
JOIN callboard.jobs AS j ON j.id = w.job AND j.deleted_at IS NULL
CROSS JOIN LATERAL (
    SELECT * FROM callboard.attempts AS a
    WHERE a.job_id = w.job AND a.item = w.item ORDER BY a.attempt DESC LIMIT 1
) AS e

-- name: recount
-- The counters of jobs, and the counts of their rows, in one snapshot, so that it is exact while workers run.
-- A job with stages has no items: its state is compared with its stages. Unpublished messages of an ended job are deleted:
-- then `published` has only an upper bound. Deleted jobs are left out, because their rows are being deleted.
-- Caller: queries.verify. Rows: one per job, `stored` and `counted` by the names of the checks.
SELECT k.id, k.name, k.finished_at IS NOT NULL AS over,
       to_jsonb(k) || jsonb_build_object('errors', e.count, 'fatal', e.failed, 'parked', c.retrying,
                                         'stages', coalesce(k.stages, 0), 'unended', 0) AS stored,
       to_jsonb(c) || to_jsonb(a) || jsonb_build_object(
           'stages', s.stages, 'unended', CASE WHEN k.finished_at IS NULL THEN 0 ELSE s.unended END) AS counted
FROM callboard.jobs AS k
{counted_items}
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE a.kind <> 'postponed' AND a.attempt < i.attempt) AS retries,
           count(*) FILTER (WHERE a.kind NOT IN ('skipped', 'postponed')) AS errors,
           count(*) FILTER (WHERE a.kind NOT IN ('skipped', 'postponed') AND NOT a.retried
                              AND (a.attempt < i.attempt) IS NOT TRUE) AS fatal
    FROM callboard.attempts AS a
    LEFT JOIN LATERAL (
        SELECT attempt FROM callboard.items AS i WHERE i.job_id = a.job_id AND i.item = a.item OFFSET 0
    ) AS i ON true
    WHERE a.job_id = k.id
) AS a
CROSS JOIN LATERAL (
    SELECT coalesce(sum(e.count), 0)::bigint AS count, coalesce(sum(e.failed), 0)::bigint AS failed
    FROM callboard.errors AS e WHERE e.job_id = k.id
) AS e
CROSS JOIN LATERAL (
    SELECT count(*) AS stages,
           count(*) FILTER (WHERE s.finished_at IS NULL OR k.state = 'completed' AND s.state <> 'completed') AS unended
    FROM callboard.jobs AS s WHERE s.parent_id = k.id
) AS s
WHERE (k.id BETWEEN %(low)s AND %(high)s OR k.parent_id BETWEEN %(low)s AND %(high)s) AND k.deleted_at IS NULL
ORDER BY k.id

-- name: metric_items
-- Items by actor and queue: the open ones by state, and the counters of all ended ones. The rows of open jobs are read, and
-- the totals of ended ones. Caller: queries.metric_items. Rows: one per actor and queue.
WITH held AS (
    SELECT job_id, count(*) AS in_hand FROM callboard.running GROUP BY job_id
), one AS (
    SELECT coalesce(j.actor, '') AS actor, coalesce(j.queue, '') AS queue, j.succeeded, j.failed, j.skipped, j.retries, j.crashes,
           j.retrying, w.waiting,
           least(w.waiting, j.total - j.published + j.in_turn) AS pending, coalesce(h.in_hand, 0) AS in_hand
    FROM callboard.jobs AS j
    LEFT JOIN held AS h ON h.job_id = j.id
    CROSS JOIN LATERAL (
        SELECT CASE WHEN j.stopping IS NULL THEN j.total - j.succeeded - j.failed - j.skipped - j.cancelled - j.retrying
                    ELSE 0 END AS waiting
    ) AS w
    WHERE j.finished_at IS NULL
    UNION ALL
    SELECT actor, queue, succeeded, failed, skipped, retries, crashes, 0, 0, 0, 0 FROM callboard.totals
)
SELECT actor, queue, sum(succeeded)::bigint AS succeeded, sum(failed)::bigint AS failed, sum(skipped)::bigint AS skipped,
       sum(retries)::bigint AS retries, sum(crashes)::bigint AS crashes, sum(retrying)::bigint AS retrying,
       sum(pending)::bigint AS pending, sum(least(waiting - pending, in_hand))::bigint AS running,
       sum(waiting - pending - least(waiting - pending, in_hand))::bigint AS queued
FROM one GROUP BY actor, queue ORDER BY actor, queue

-- name: metric_facts
-- The numbers of jobs and workers, and the delays of overdue work in seconds: the oldest job that may start and has not, the
-- publishers, a worker's heartbeat, and the sweep. Stages count with their parents.
-- Caller: queries.metric_facts. Rows: one.
SELECT (SELECT jsonb_object_agg(s.state, s.jobs) FROM (
            SELECT one.state, sum(one.jobs)::bigint AS jobs FROM (
                SELECT state, count(*) AS jobs FROM callboard.jobs WHERE finished_at IS NULL AND parent_id IS NULL GROUP BY state
                UNION ALL
                SELECT state, jobs FROM callboard.totals WHERE state IS NOT NULL
            ) AS one GROUP BY one.state
        ) AS s) AS jobs,
       (SELECT extract(epoch FROM now() - min(greatest(created_at, not_before)))::float8 FROM callboard.jobs
        WHERE finished_at IS NULL AND state = 'pending' AND started_at IS NULL AND total > 0 AND coalesce(not_before < now(), true)
       ) AS oldest_pending,
       (SELECT extract(epoch FROM now() - min(least(bulk_at, due_at)))::float8 FROM callboard.turns
        WHERE NOT held AND NOT over AND least(bulk_at, due_at) < now()) AS publish_delay,
       w.workers, w.threads, w.held, w.heartbeat_age,
       (SELECT extract(epoch FROM now() - until)::float8 FROM callboard.leases WHERE name = 'sweep') AS sweep_overdue
FROM (
    SELECT count(*) FILTER (WHERE alive) AS workers, coalesce(sum(threads) FILTER (WHERE alive), 0)::bigint AS threads,
           coalesce(sum(held) FILTER (WHERE alive), 0)::bigint AS held, max(age)::float8 AS heartbeat_age
    FROM (SELECT threads, cardinality(held_items) AS held, extract(epoch FROM now() - beat_at) AS age,
                 beat_at > now() - make_interval(secs => %(DEAD_AFTER_SECONDS)s) AS alive
          FROM callboard.workers WHERE stopped_at IS NULL AND died_at IS NULL) AS one
) AS w
