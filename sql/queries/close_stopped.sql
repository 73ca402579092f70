-- close_stopped: jobs that are being stopped and have nothing in hand any more. Transition: stopping -> failed | cancelled,
-- and their callbacks are queued.
-- Guard: every worker had the time to hear of it (`heard` seconds), or nothing was ever published and no publisher is at
-- work, or no worker lives; and no item has a row in `running`. A job of stages ends with them (end_parent).
-- Caller: controls.cancel, the heartbeat, the sweep. Rows: (id). Lock order: jobs by id.
WITH done AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE j.finished_at IS NULL AND j.stopping IS NOT NULL AND j.stages IS NULL
      AND (j.told_at < clock_timestamp() - make_interval(secs => %(heard)s)
           OR j.published = 0 AND j.publish_until IS NULL
              AND NOT EXISTS (SELECT FROM callboard.outbox AS o WHERE o.job_id = j.id AND o.claimed_until IS NOT NULL)
           OR NOT EXISTS (SELECT FROM callboard.workers AS w WHERE w.stopped_at IS NULL AND w.died_at IS NULL
                          AND w.beat_at > now() - make_interval(secs => %(dead_after)s)))
      AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = j.id)
    ORDER BY j.id FOR NO KEY UPDATE OF j
), ended AS (
    UPDATE callboard.jobs AS j
    SET state = j.stopping, stopping = NULL, finished_at = now(), updated_at = now()
    FROM done WHERE j.id = done.id AND j.stopping IS NOT NULL RETURNING j.*
), called AS (
    INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, job)
    SELECT e.id, e.finished_at, e.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue', to_jsonb(e) - 'callbacks'
    FROM ended AS e CROSS JOIN LATERAL jsonb_array_elements(e.callbacks -> e.state::text) AS t
)
SELECT id FROM ended
