-- jobs: jobs by id, newest first, with all that a description is derived from (describe.py), in one snapshot.
-- No item is counted, and at most one looked at: a job of ten million items costs the same as one of ten. One job:
-- `low` = `high` = its id.
-- After the jobs come the stages that they have; a stage is listed only with its parent, or when it is asked for alone.
-- Caller: reads.job, reads.jobs. Rows: one a job or stage; `moved_at` to `elsewhere` are NULL unless the job is open and
-- quiet, `hung` (at most ten items, the longest in hand first) is NULL unless something hangs.
WITH page AS MATERIALIZED (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.id BETWEEN %(low)s AND %(high)s AND (j.parent_id IS NULL OR %(low)s = %(high)s)
      AND j.leaving_at IS NULL
      AND (%(state)s::callboard.job_state IS NULL OR j.state = %(state)s::callboard.job_state)
      AND (%(tenant)s::text IS NULL OR j.tenant = %(tenant)s::text)
      AND (%(actor)s::text IS NULL OR j.actor = %(actor)s::text OR EXISTS (
          SELECT FROM callboard.jobs AS s WHERE s.parent_id = j.id AND s.actor = %(actor)s::text))
      AND (%(name)s::text IS NULL OR strpos(lower(j.name), lower(%(name)s::text)) > 0)
    ORDER BY j.id DESC LIMIT %(limit)s
), shown AS (
    SELECT id, false AS within FROM page
    UNION ALL
    SELECT s.id, true FROM page JOIN callboard.jobs AS s ON s.parent_id = page.id
)
SELECT j.id, j.name, coalesce(j.key, (SELECT p.key FROM callboard.jobs AS p WHERE p.id = j.parent_id)) AS key, j.tenant, j.actor, j.state::text AS state, j.stopping::text AS stopping, j.reason, j.sealed,
       j.total, j.published, j.retrying, j.succeeded, j.failed, j.skipped, j.cancelled, j.redo, j.retries, j.crashes,
       j.step, j.limits, j.metadata, j.created_by, j.created_at, j.started_at, j.finished_at, j.updated_at, j.told_at,
       j.standing_on IS NOT NULL AS standing, j.submitting_until > now() AS submitting, j.consumed, now() AS read_at,
       j.not_before, j.rate_ready + make_interval(secs => 1 / j.rate) AS next_start,
       j.stages, j.parent_id, j.stage, j.makes, j.on_failure, j.maker, shown.within,
       before.id IS NOT NULL AND before.finished_at IS NULL AS waits,
       (SELECT count(*) FROM callboard.running AS r WHERE r.job_id = j.id) AS in_hand,
       sample.taken_at AS sampled_at, sample.final AS sampled_final,
       quiet.moved_at, quiet.alive, quiet.able, quiet.tended, quiet.due_at, quiet.missing, quiet.trouble,
       quiet.elsewhere,
       hanging.hung
FROM shown
JOIN callboard.jobs AS j ON j.id = shown.id
LEFT JOIN LATERAL (
    SELECT b.id, b.finished_at FROM callboard.jobs AS b WHERE b.parent_id = j.parent_id AND b.stage = j.stage - 1 OFFSET 0
) AS before ON true
LEFT JOIN LATERAL (
    (SELECT s.taken_at, s.final FROM callboard.samples AS s
     WHERE s.job_id = j.id AND s.taken_at BETWEEN now() - interval '30 seconds' AND now() - interval '2 seconds'
     ORDER BY s.taken_at LIMIT 1)
    UNION ALL
    (SELECT s.taken_at, s.final FROM callboard.samples AS s
     WHERE s.job_id = j.id AND s.taken_at < now() - interval '30 seconds'
     ORDER BY s.taken_at DESC LIMIT 1)
    ORDER BY taken_at DESC LIMIT 1
) AS sample ON j.finished_at IS NULL
LEFT JOIN LATERAL (
    SELECT moved.moved_at,
           (SELECT count(*) FROM callboard.workers AS w
            WHERE w.stopped_at IS NULL AND w.died_at IS NULL
              AND w.beat_at > now() - make_interval(secs => %(dead_after)s)) AS alive,
           (SELECT count(*) FROM callboard.workers AS w
            WHERE w.stopped_at IS NULL AND w.died_at IS NULL
              AND w.beat_at > now() - make_interval(secs => %(dead_after)s)
              AND (j.actor IS NULL OR j.actor = ANY (w.actors))) AS able,
           (SELECT count(*) FROM callboard.running AS r JOIN callboard.workers AS w ON w.id = r.worker
            WHERE r.job_id = j.id AND w.stopped_at IS NULL AND w.died_at IS NULL
              AND w.beat_at > now() - make_interval(secs => %(dead_after)s))
           + (SELECT count(*) FROM callboard.workers AS w
              WHERE w.id = j.maker AND w.stopped_at IS NULL AND w.died_at IS NULL
                AND w.beat_at > now() - make_interval(secs => %(dead_after)s)) AS tended,
           (SELECT max(w.trouble) FROM callboard.workers AS w
            WHERE w.stopped_at IS NULL AND w.died_at IS NULL
              AND w.beat_at > now() - make_interval(secs => %(dead_after)s)
              AND (j.actor IS NULL OR j.actor = ANY (w.actors))) AS trouble,
           (SELECT count(*) FROM callboard.running AS r JOIN callboard.workers AS w ON w.id = r.worker
            WHERE r.job_id <> j.id AND w.stopped_at IS NULL AND w.died_at IS NULL
              AND w.beat_at > now() - make_interval(secs => %(dead_after)s)
              AND (j.actor IS NULL OR j.actor = ANY (w.actors))) AS elsewhere,
           -- Of a job without any it would read those of all others, by time.
           CASE WHEN (SELECT o.item FROM callboard.outbox AS o WHERE o.job_id = j.id ORDER BY o.item LIMIT 1) IS NOT NULL
                THEN (SELECT min(o.due_at) FROM callboard.outbox AS o
                      WHERE o.job_id = j.id AND o.due_at < timestamptz '9999-01-01Z') END AS due_at,
           (SELECT coalesce((SELECT i.actor FROM callboard.items AS i WHERE i.job_id = j.id AND i.item = one.item), j.actor)
            FROM (SELECT o.item FROM callboard.outbox AS o
                  WHERE o.job_id = j.id AND o.due_at = timestamptz '9999-01-01Z' ORDER BY o.item LIMIT 1) AS one
           ) AS missing  -- see postpone
    FROM (SELECT greatest(j.updated_at, before.finished_at) AS moved_at) AS moved  -- its turn comes with that one's end
    WHERE j.finished_at IS NULL AND j.state <> 'paused'
      AND moved.moved_at < now() - make_interval(secs => %(quiet_after)s)
    OFFSET 0  -- else all of this is looked up for every job
) AS quiet ON true
LEFT JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_object('item', h.item, 'seconds', h.seconds, 'worker', h.worker, 'place', h.place)) AS hung
    FROM (
        SELECT r.item, r.worker, round(extract(epoch FROM now() - r.started_at)) AS seconds, r.place
        FROM callboard.running AS r WHERE r.job_id = j.id AND r.stack IS NOT NULL ORDER BY r.started_at LIMIT 10
    ) AS h
) AS hanging ON j.finished_at IS NULL
ORDER BY shown.within, j.id DESC
