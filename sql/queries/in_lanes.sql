-- in_lanes: what is in flight of a job's lanes. Caller: the publisher, which holds the job's claim. Rows: (item, args).
SELECT l.item, i.args
FROM callboard.lanes AS l JOIN callboard.items AS i ON i.job_id = l.job_id AND i.item = l.item
WHERE l.job_id = %s
