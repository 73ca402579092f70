-- claim_item: a suspect message arrived: may this worker run its item?
-- Guard: the row still carries the message's attempt, isn't final, and nobody holds it (a row in `running`).
-- Caller: Tracking, before the actor, and only for suspect messages.
-- Rows: (state, attempt, crashes, holder, taken now, the holder lives); none: no such item. A holder that only has not
-- beaten for a while counts as living here: after an outage nobody has. The sweep knows better, and answers for it.
WITH found AS MATERIALIZED (
    SELECT state, attempt, crashes FROM callboard.items
    WHERE job_id = %(job)s AND item = %(item)s FOR NO KEY UPDATE
), held AS (
    INSERT INTO callboard.running AS r (job_id, item, attempt, worker, started_at)
    SELECT %(job)s, %(item)s, %(attempt)s, %(worker)s, now() FROM found
    WHERE found.attempt = %(attempt)s AND found.state IN ('waiting', 'retrying')
    ON CONFLICT (job_id, item) DO UPDATE SET worker = r.worker
    RETURNING r.worker, r.xmax = 0 AS taken
)
SELECT found.state::text, found.attempt, found.crashes, held.worker, coalesce(held.taken, false),
       coalesce(w.stopped_at IS NULL AND w.died_at IS NULL, false)
FROM found LEFT JOIN held ON true LEFT JOIN callboard.workers AS w ON w.id = held.worker
