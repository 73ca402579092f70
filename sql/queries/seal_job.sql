-- seal_job: no more items come from outside. Transition: open -> sealed; and completed when nothing is left to do: then
-- its callbacks are queued.
-- Guard: neither sealed nor stopped, nor a job of stages. Caller: submit, job(), the sweep. Rows: (state); none: sealed or stopped before.
WITH ended AS (
    UPDATE callboard.jobs
    SET sealed = true,
        state = CASE WHEN stopping IS NULL AND succeeded + failed + skipped + cancelled = total THEN 'completed' ELSE state END,
        finished_at = CASE WHEN stopping IS NULL AND succeeded + failed + skipped + cancelled = total THEN now() END,
        updated_at = now()
    WHERE id = %s AND NOT sealed AND finished_at IS NULL AND stages IS NULL
    RETURNING *
), called AS (
    INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, job)
    SELECT e.id, e.finished_at, e.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue', to_jsonb(e) - 'callbacks'
    FROM ended AS e CROSS JOIN LATERAL jsonb_array_elements(e.callbacks -> e.state::text) AS t
    WHERE e.finished_at IS NOT NULL
)
SELECT state::text FROM ended
