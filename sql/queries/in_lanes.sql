-- in_lanes: what is in flight of a job's lanes. Caller: the publisher, which holds the job's claim. Rows: (item, args).
SELECT l.item, i.args
FROM callboard.lanes AS l
CROSS JOIN LATERAL (SELECT args FROM callboard.items AS i WHERE i.job_id = l.job_id AND i.item = l.item OFFSET 0) AS i
WHERE l.job_id = %s
