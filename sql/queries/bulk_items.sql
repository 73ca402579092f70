-- bulk_items: what lies in a stretch of a job's bulk range. Children stored in between have a message id and their own
-- path. Caller: the publisher. Rows: (item, attempt, args, options), by item.
SELECT item, attempt, args, coalesce(retry_options, options) FROM callboard.items
WHERE job_id = %s AND item >= %s AND item < %s AND message_id IS NULL ORDER BY item
