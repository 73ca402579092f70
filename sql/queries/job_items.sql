-- job_items: a page of a job's items by number, of one described state or of any. One item: `after` = item - 1.
-- The states that are rare in a large job are found where their rows are few (attempts, running, outbox), not in items:
-- OFFSET 0 keeps the planner, which may know nothing of a new job yet, from beginning at the items all the same.
-- Caller: reads.items, reads.item. Rows: one an item; `args` and `result` are cut at `cap`.
WITH job AS (
    SELECT watermark, actor, finished_at IS NOT NULL AS over, finished_at IS NOT NULL OR stopping IS NOT NULL AS ends
    FROM callboard.jobs WHERE id = %(job)s AND leaving_at IS NULL
), wanted AS MATERIALIZED (
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text IS NULL AND i.job_id = %(job)s AND i.item > %(after)s
     ORDER BY i.item LIMIT %(limit)s)
    UNION ALL
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text = 'succeeded' AND i.job_id = %(job)s AND i.item > %(after)s AND i.state = 'succeeded'
     ORDER BY i.item LIMIT %(limit)s)
    UNION ALL
    (SELECT a.item FROM callboard.attempts AS a
     CROSS JOIN LATERAL (
         SELECT state, attempt FROM callboard.items AS i WHERE i.job_id = a.job_id AND i.item = a.item OFFSET 0
     ) AS i
     WHERE %(state)s::text IN ('failed', 'skipped') AND a.job_id = %(job)s AND a.item > %(after)s
       AND NOT a.retried AND a.attempt = i.attempt AND i.state::text = %(state)s::text
     ORDER BY a.item LIMIT %(limit)s)
    UNION ALL
    (SELECT r.item FROM callboard.running AS r
     CROSS JOIN LATERAL (
         SELECT state FROM callboard.items AS i WHERE i.job_id = r.job_id AND i.item = r.item OFFSET 0
     ) AS i
     WHERE %(state)s::text = 'running' AND NOT (SELECT over FROM job) AND r.job_id = %(job)s AND r.item > %(after)s
       AND i.state IN ('waiting', 'retrying')
     ORDER BY r.item LIMIT %(limit)s)
    UNION ALL
    (SELECT o.item FROM callboard.outbox AS o
     CROSS JOIN LATERAL (
         SELECT state FROM callboard.items AS i WHERE i.job_id = o.job_id AND i.item = o.item OFFSET 0
     ) AS i
     WHERE %(state)s::text = 'retrying' AND NOT (SELECT ends FROM job) AND o.job_id = %(job)s AND o.item > %(after)s
       AND i.state = 'retrying'
       AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = o.job_id AND r.item = o.item OFFSET 0)
     ORDER BY o.item LIMIT %(limit)s)
    UNION ALL
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text = 'pending' AND NOT (SELECT ends FROM job) AND i.job_id = %(job)s
       AND i.item >= greatest(%(after)s + 1, (SELECT watermark FROM job))
       AND i.message_id IS NULL AND i.state = 'waiting'
       AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item OFFSET 0)
     ORDER BY i.item LIMIT %(limit)s)
    UNION ALL
    (SELECT o.item FROM callboard.outbox AS o
     CROSS JOIN LATERAL (
         SELECT state FROM callboard.items AS i WHERE i.job_id = o.job_id AND i.item = o.item OFFSET 0
     ) AS i
     WHERE %(state)s::text = 'pending' AND NOT (SELECT ends FROM job) AND o.job_id = %(job)s AND o.item > %(after)s
       AND (o.first OR o.redo) AND i.state = 'waiting'
       AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = o.job_id AND r.item = o.item OFFSET 0)
     ORDER BY o.item LIMIT %(limit)s)
    UNION ALL
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text = 'queued' AND NOT (SELECT ends FROM job) AND i.job_id = %(job)s AND i.item > %(after)s
       AND i.state = 'waiting'
       AND (i.message_id IS NOT NULL OR i.item < (SELECT watermark FROM job))
       AND NOT EXISTS (SELECT FROM callboard.outbox AS o WHERE o.job_id = i.job_id AND o.item = i.item AND (o.first OR o.redo) OFFSET 0)
       AND NOT EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item OFFSET 0)
     ORDER BY i.item LIMIT %(limit)s)
    UNION ALL
    (SELECT i.item FROM callboard.items AS i
     WHERE %(state)s::text = 'cancelled' AND i.job_id = %(job)s AND i.item > %(after)s
       AND (i.state = 'cancelled'
            OR (SELECT ends FROM job) AND i.state IN ('waiting', 'retrying')
               AND NOT EXISTS (SELECT FROM callboard.running AS r
                               WHERE r.job_id = i.job_id AND r.item = i.item AND NOT (SELECT over FROM job) OFFSET 0))
     ORDER BY i.item LIMIT %(limit)s)
), page AS MATERIALIZED (
    SELECT DISTINCT item FROM wanted ORDER BY item LIMIT %(limit)s
)
SELECT page.item, i.item_key AS key, coalesce(i.actor, job.actor) AS actor,
       CASE WHEN i.state IN ('succeeded', 'failed', 'skipped', 'cancelled') THEN i.state::text
            WHEN r.item IS NOT NULL THEN 'running'
            WHEN job.ends THEN 'cancelled'
            WHEN i.state = 'retrying' THEN 'retrying'
            WHEN o.first OR o.redo OR i.message_id IS NULL AND i.item >= job.watermark THEN 'pending'
            ELSE 'queued' END AS state,
       coalesce(r.attempt, i.attempt) AS attempt, i.crashes, r.step,
       r.progress_done, r.progress_total, r.stack, r.stack_at, coalesce(r.worker, i.worker) AS worker,
       coalesce(r.started_at, i.started_at) AS started_at, i.finished_at,
       CASE WHEN o.due_at < 'infinity' THEN o.due_at END AS due_at,
       substring(i.args FROM 1 FOR %(cap)s) AS args, octet_length(i.args) AS args_size,
       left(v.value, %(cap)s) AS result, length(v.value) AS result_size,
       e.kind::text AS error_kind, e.error_type, left(e.message, %(cap)s) AS error_message, e.place AS error_place
FROM page
CROSS JOIN job
CROSS JOIN LATERAL (
    SELECT * FROM callboard.items AS i WHERE i.job_id = %(job)s AND i.item = page.item OFFSET 0
) AS i
LEFT JOIN callboard.running AS r
    ON r.job_id = i.job_id AND r.item = i.item AND i.state IN ('waiting', 'retrying') AND NOT job.over
LEFT JOIN callboard.outbox AS o ON o.job_id = i.job_id AND o.item = i.item
LEFT JOIN LATERAL (
    SELECT * FROM callboard.results AS v WHERE v.job_id = i.job_id AND v.item = i.item OFFSET 0
) AS v ON true
LEFT JOIN LATERAL (
    SELECT * FROM callboard.attempts AS a
    WHERE a.job_id = i.job_id AND a.item = i.item AND i.state <> 'succeeded' ORDER BY a.attempt DESC LIMIT 1
) AS e ON true
ORDER BY page.item
