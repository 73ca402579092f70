-- end_parent: none of its stages is open any more. Transition: open -> completed | failed | cancelled, and its callbacks
-- are queued, with the rows of its stages as they are then. The only statement that makes a job of stages final.
-- Guard: still open. Caller: stages.settle, under its lock. Rows: (id).
WITH ended AS (
    UPDATE callboard.jobs
    SET state = %(state)s::callboard.job_state, sealed = sealed OR %(state)s = 'completed', stopping = NULL,
        finished_at = now(), updated_at = now()
    WHERE id = %(parent)s AND finished_at IS NULL
    RETURNING *
), called AS (
    INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, job)
    SELECT e.id, e.finished_at, e.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue',
           to_jsonb(e) - 'callbacks' || jsonb_build_object('within', (
               SELECT jsonb_agg(to_jsonb(s) ORDER BY s.stage) FROM callboard.jobs AS s WHERE s.parent_id = e.id))
    FROM ended AS e CROSS JOIN LATERAL jsonb_array_elements(e.callbacks -> e.state::text) AS t
)
SELECT id FROM ended
