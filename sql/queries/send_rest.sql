-- send_rest: the open items of a stopped job that the watermark will not publish: their messages were dropped, or may lie
-- in RabbitMQ still, so they are suspect. Caller: controls.retry, under the job's lock. Rows: none, counted.
INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect, redo)
SELECT i.job_id, i.item, i.attempt, 'infinity', false, true, true FROM callboard.items AS i
WHERE i.job_id = %(job)s AND i.state = 'waiting' AND (i.message_id IS NOT NULL OR i.item < %(below)s)
ORDER BY i.item
