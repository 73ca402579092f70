-- break_abandoned: jobs without a key whose submitter is gone: nobody can take them up again.
-- Transition: open -> failed, with a reason that says what to do; its callbacks are queued. Guard: neither sealed nor
-- stopped, the lease lapsed.
-- The key of a stage is its parent's.
-- One with a key stays open, and `stalled` says so (describe.py). Caller: the sweep. Rows: (id). Lock order: jobs by id.
WITH abandoned AS (
    SELECT j.id FROM callboard.jobs AS j
    WHERE finished_at IS NULL AND stopping IS NULL AND NOT sealed AND key IS NULL AND submitting_until < now()
      AND NOT EXISTS (SELECT FROM callboard.jobs AS p WHERE p.id = j.parent_id AND p.key IS NOT NULL)
    ORDER BY j.id FOR NO KEY UPDATE
), ended AS (
    UPDATE callboard.jobs AS j
    SET state = 'failed', finished_at = now(), updated_at = now(), epoch = epoch + 1, told_at = clock_timestamp(),
        reason = 'its submission broke off: its process was not heard of any more. ' || total || ' items were stored, '
                 || succeeded + failed + skipped || ' of them are done, and the rest is not run. Submit it anew: with a'
                 || ' key it stays open, to go on where it broke off'
    FROM abandoned WHERE j.id = abandoned.id
    RETURNING j.*
), called AS (
    INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, job)
    SELECT e.id, e.finished_at, e.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue', to_jsonb(e) - 'callbacks'
    FROM ended AS e CROSS JOIN LATERAL jsonb_array_elements(e.callbacks -> e.state::text) AS t
)
SELECT id FROM ended
