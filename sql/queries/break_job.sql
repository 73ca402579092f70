-- break_job: a submission that can't be taken up again broke off. Transition: open -> failed, with the reason;
-- its callbacks are queued. Guard: neither sealed nor stopped. Caller: submit.
WITH ended AS (
    UPDATE callboard.jobs SET state = 'failed', reason = %s, finished_at = now(), updated_at = now(), epoch = epoch + 1,
        told_at = clock_timestamp()
    WHERE id = %s AND NOT sealed AND finished_at IS NULL AND stopping IS NULL
    RETURNING *
)
INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, job)
SELECT e.id, e.finished_at, e.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue', to_jsonb(e) - 'callbacks'
FROM ended AS e CROSS JOIN LATERAL jsonb_array_elements(e.callbacks -> e.state::text) AS t
