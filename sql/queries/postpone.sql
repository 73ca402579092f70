-- postpone: a message came to a worker that lacks its actor. Other workers have or had it, so the message waits as a row:
-- for a moment while one of them lives, else until one comes (wake_postponed).
-- Guard: the row still carries that attempt and waits, and nobody holds it.
-- Caller: Recorder.postpone. Rows: one, whether any worker ever announced the actor.
WITH waiting AS (
    SELECT i.job_id, i.item, i.attempt FROM callboard.items AS i
    WHERE i.job_id = %(job)s AND i.item = %(item)s AND i.attempt = %(attempt)s AND i.state IN ('waiting', 'retrying')
      AND EXISTS (SELECT FROM callboard.actors AS a WHERE a.name = %(actor)s)
      AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item)
    FOR NO KEY UPDATE OF i
), kept AS (
    INSERT INTO callboard.outbox AS o (job_id, item, attempt, due_at, first, suspect, again)
    SELECT job_id, item, attempt,
           CASE WHEN EXISTS (SELECT FROM callboard.workers AS w
                             WHERE w.stopped_at IS NULL AND w.died_at IS NULL AND %(actor)s = ANY (w.actors)
                               AND w.beat_at > now() - make_interval(secs => %(dead_after)s))
                THEN now() + make_interval(secs => %(delay)s) ELSE timestamptz '9999-01-01Z' END,
           false, true, true
    FROM waiting
    -- Delivered before its publisher said so: under another id, or that would take the row away.
    ON CONFLICT (job_id, item) DO UPDATE
    SET id = DEFAULT, due_at = excluded.due_at, claimed_until = NULL, suspect = true, again = true
    WHERE o.attempt = excluded.attempt
)
SELECT EXISTS (SELECT FROM callboard.actors AS a WHERE a.name = %(actor)s)
