-- recount: what the jobs say and what their rows say, in one snapshot, so it is exact while workers run.
-- Of a job with stages, which has no items, it is told whether its state fits theirs. Of a job that is over, messages that
-- were never published are dropped: then `published` has an upper bound only. One that is leaving is not looked at: its
-- rows go. Caller: reads.verify. Rows: one a job, each pair as stored_… and counted_….
SELECT j.id, j.name, j.finished_at IS NOT NULL AS over,
       j.total AS stored_total, i.total AS counted_total,
       j.published AS stored_published, i.published AS counted_published,
       j.retrying AS stored_retrying, i.retrying AS counted_retrying,
       j.succeeded AS stored_succeeded, i.succeeded AS counted_succeeded,
       j.failed AS stored_failed, i.failed AS counted_failed,
       j.skipped AS stored_skipped, i.skipped AS counted_skipped,
       j.cancelled AS stored_cancelled, i.cancelled AS counted_cancelled,
       j.redo AS stored_redo, i.redo AS counted_redo,
       j.retries AS stored_retries, a.retries AS counted_retries,
       j.crashes AS stored_crashes, i.crashes AS counted_crashes,
       e.count AS stored_errors, a.errors AS counted_errors,
       e.failed AS stored_fatal, a.fatal AS counted_fatal,
       i.retrying AS stored_parked, i.parked AS counted_parked,
       coalesce(j.stages, 0) AS stored_stages, s.stages AS counted_stages,
       0 AS stored_unended, CASE WHEN j.finished_at IS NULL THEN 0 ELSE s.unended END AS counted_unended
FROM callboard.jobs AS j
CROSS JOIN LATERAL (
    SELECT count(*) AS total,
           count(*) FILTER (WHERE i.state = 'retrying') AS retrying,
           count(*) FILTER (WHERE i.state = 'succeeded') AS succeeded,
           count(*) FILTER (WHERE i.state = 'failed') AS failed,
           count(*) FILTER (WHERE i.state = 'skipped') AS skipped,
           count(*) FILTER (WHERE i.state = 'cancelled') AS cancelled,
           count(*) FILTER (WHERE o.redo) AS redo,
           coalesce(sum(i.crashes), 0)::bigint AS crashes,
           count(*) FILTER (WHERE i.message_id IS NULL AND i.item < j.watermark
                               OR i.message_id IS NOT NULL AND o.first IS DISTINCT FROM true) AS published,
           count(*) FILTER (WHERE i.state = 'retrying' AND o.item IS NOT NULL) AS parked
    FROM callboard.items AS i LEFT JOIN callboard.outbox AS o ON o.job_id = i.job_id AND o.item = i.item
    WHERE i.job_id = j.id
) AS i
CROSS JOIN LATERAL (
    SELECT count(*) FILTER (WHERE a.attempt < i.attempt) AS retries,
           count(*) FILTER (WHERE a.kind <> 'skipped') AS errors,
           count(*) FILTER (WHERE a.kind <> 'skipped' AND (a.attempt < i.attempt) IS NOT TRUE) AS fatal
    FROM callboard.attempts AS a LEFT JOIN callboard.items AS i ON i.job_id = j.id AND i.item = a.item
    WHERE a.job_id = j.id
) AS a
CROSS JOIN LATERAL (
    SELECT coalesce(sum(e.count), 0)::bigint AS count, coalesce(sum(e.failed), 0)::bigint AS failed
    FROM callboard.errors AS e WHERE e.job_id = j.id
) AS e
CROSS JOIN LATERAL (
    SELECT count(*) AS stages,
           count(*) FILTER (WHERE s.finished_at IS NULL OR j.state = 'completed' AND s.state <> 'completed') AS unended
    FROM callboard.jobs AS s WHERE s.parent_id = j.id
) AS s
WHERE (j.id BETWEEN %(low)s AND %(high)s OR j.parent_id BETWEEN %(low)s AND %(high)s) AND j.leaving_at IS NULL
ORDER BY j.id
