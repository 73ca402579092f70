-- stage_results: a page of a stage's items in these states, with their results, by item. Caller: stages.results.
-- Rows: (item, args, state, result).
SELECT i.item, i.args, i.state::text, v.value
FROM callboard.items AS i
LEFT JOIN LATERAL (
    SELECT value FROM callboard.results AS v WHERE v.job_id = i.job_id AND v.item = i.item OFFSET 0
) AS v ON true
WHERE i.job_id = %(job)s AND i.item > %(after)s AND i.state::text = ANY (%(states)s)
ORDER BY i.item LIMIT %(limit)s
