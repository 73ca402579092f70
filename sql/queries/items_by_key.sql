-- items_by_key: which of these item keys their jobs have already, under the jobs' locks.
-- Caller: add_items, for messages recorded on sight. Rows: (job_id, item_key, item).
SELECT i.job_id, i.item_key, i.item
FROM unnest(%(job)s::bigint[], %(key)s::text[]) AS k (job_id, item_key)
JOIN callboard.items AS i ON i.job_id = k.job_id AND i.item_key = k.item_key
