-- claim_outbox: messages that are due, for as long as the lease lasts.
-- Guard: due, unclaimed or abandoned (then it may have been published: suspect), its job open, its time has come, and it
-- is neither paused nor being stopped nor limited (see claim_redo); what is for the dead letters goes there whatever
-- became of the job.
-- Caller: the publisher. Rows: Outgoing.
WITH due AS (
    SELECT o.id, o.claimed_until IS NOT NULL AS again FROM callboard.outbox AS o
    WHERE o.due_at <= now() AND (o.claimed_until IS NULL OR o.claimed_until <= now())
      AND (o.dead OR EXISTS (SELECT FROM callboard.jobs AS j
                             WHERE j.id = o.job_id AND j.finished_at IS NULL AND j.stopping IS NULL
                                   AND j.state <> 'paused' AND j.concurrency IS NULL AND j.rate IS NULL
                                   AND j.lane_by IS NULL AND (j.not_before IS NULL OR j.not_before <= now())))
    ORDER BY o.due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE callboard.outbox AS o
    SET claimed_until = now() + make_interval(secs => %(lease)s), suspect = o.suspect OR due.again
    FROM due WHERE o.id = due.id
    RETURNING o.*
)
SELECT c.job_id, c.item, c.attempt, j.epoch, c.suspect, coalesce(i.actor, j.actor), coalesce(i.queue, j.queue),
       coalesce(i.message_id, c.job_id || '-' || c.item), i.args,
       coalesce(c.options, i.retry_options, i.options),
       coalesce(c.sent_ms, (extract(epoch FROM i.sent_at) * 1000)::bigint), c.id, c.dead
FROM claimed AS c JOIN callboard.items AS i USING (job_id, item) JOIN callboard.jobs AS j ON j.id = c.job_id
ORDER BY c.due_at
