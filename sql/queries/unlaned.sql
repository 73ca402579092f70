-- unlaned: messages of a job that could be published in its turn and whose lane nobody has told yet: retries, what was
-- parked or is sent again, children. Caller: the publisher, which holds the job's claim. Rows: (outbox id, args).
SELECT o.id, i.args
FROM callboard.outbox AS o JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
WHERE o.id IN (
    (SELECT o.id FROM callboard.outbox AS o WHERE o.job_id = %(job)s AND o.redo AND o.lane IS NULL LIMIT %(limit)s)
    UNION
    (SELECT o.id FROM callboard.outbox AS o
     WHERE o.job_id = %(job)s AND o.due_at <= now() AND o.lane IS NULL AND NOT o.dead LIMIT %(limit)s)
)
