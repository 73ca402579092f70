-- queue_missed_callbacks: callbacks of ends that queued none, since a process of an older release recorded them.
-- Guard: none was queued for this end; the job, locked, is still over. Caller: the sweep. Rows: (job_id), one a callback.
-- Lock order: jobs by id.
WITH ended AS (
    SELECT j.* FROM callboard.jobs AS j
    WHERE j.callbacks IS NOT NULL AND j.leaving_at IS NULL AND j.finished_at > now() - make_interval(secs => %(within)s)
      AND jsonb_array_length(j.callbacks -> j.state::text) > 0
      AND NOT EXISTS (SELECT FROM callboard.callbacks AS c WHERE c.job_id = j.id AND c.ended_at = j.finished_at)
    ORDER BY j.id FOR NO KEY UPDATE OF j SKIP LOCKED
)
INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, job)
SELECT e.id, e.finished_at, e.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue', to_jsonb(e) - 'callbacks'
FROM ended AS e CROSS JOIN LATERAL jsonb_array_elements(e.callbacks -> e.state::text) AS t
RETURNING job_id
