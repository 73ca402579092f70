-- recount_jobs: the counters of jobs, anew from their rows. They must be locked, by a statement before this one: what
-- committed until then is counted, and what commits later adds to it.
-- Transition: none, but for a job that was completed too early: it runs again. Caller: mend.
UPDATE callboard.jobs AS j
SET total = c.total,
    bulk_end = least(j.bulk_end, c.total),
    watermark = least(j.watermark, c.total),
    published = CASE WHEN j.finished_at IS NULL THEN c.published ELSE least(j.published, c.total) END,
    retrying = c.retrying,
    succeeded = c.succeeded,
    failed = c.failed,
    skipped = c.skipped,
    cancelled = c.cancelled,
    redo = c.redo,
    retries = (SELECT count(*) FROM callboard.attempts AS a JOIN callboard.items AS i ON i.job_id = j.id AND i.item = a.item
               WHERE a.job_id = j.id AND a.attempt < i.attempt),
    crashes = c.crashes,
    state = CASE WHEN c.early THEN 'running' ELSE j.state END,
    finished_at = CASE WHEN NOT c.early THEN j.finished_at END,
    updated_at = now()
FROM (
    SELECT k.id, k.state = 'completed' AND count(i.item) FILTER (WHERE i.finished_at IS NOT NULL) < count(i.item) AS early,
           count(i.item) AS total,
           count(*) FILTER (WHERE i.state = 'retrying') AS retrying,
           count(*) FILTER (WHERE i.state = 'succeeded') AS succeeded,
           count(*) FILTER (WHERE i.state = 'failed') AS failed,
           count(*) FILTER (WHERE i.state = 'skipped') AS skipped,
           count(*) FILTER (WHERE i.state = 'cancelled') AS cancelled,
           count(*) FILTER (WHERE o.redo) AS redo,
           coalesce(sum(i.crashes), 0) AS crashes,
           count(i.item) FILTER (WHERE i.message_id IS NULL AND i.item < k.watermark
                                    OR i.message_id IS NOT NULL AND o.first IS DISTINCT FROM true) AS published
    FROM callboard.jobs AS k
    LEFT JOIN callboard.items AS i ON i.job_id = k.id
    LEFT JOIN callboard.outbox AS o ON o.job_id = i.job_id AND o.item = i.item
    WHERE k.id = ANY(%s) AND k.leaving_at IS NULL
    GROUP BY k.id
) AS c
WHERE j.id = c.id
