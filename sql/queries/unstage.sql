-- unstage: the staged inputs whose item key the job doesn't have, the first of each, numbered from its total.
-- Caller: store_chunk, under the job's lock. The number of rows is what the total grows by.
INSERT INTO callboard.items (job_id, item, item_key, args)
SELECT %(job)s, %(total)s + row_number() OVER (ORDER BY line) - 1, item_key, args
FROM (
    SELECT DISTINCT ON (item_key) line, item_key, args FROM pg_temp.callboard_chunk AS c
    WHERE NOT EXISTS (SELECT FROM callboard.items AS i WHERE i.job_id = %(job)s AND i.item_key = c.item_key OFFSET 0)
    ORDER BY item_key, line
) AS fresh
