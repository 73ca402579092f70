-- earlier_items: messages recorded on sight that are on record in a standing job of one of the days before: they were
-- delivered before midnight (UTC), and come again. An item that has long ended is none of them: its message was put
-- back by somebody who wants it run again. Caller: the ledger. Rows: (item_key, job_id, item).
SELECT DISTINCT ON (k.item_key) k.item_key, i.job_id, i.item
FROM unnest(%(actor)s::text[], %(key)s::text[]) AS k (actor, item_key)
JOIN callboard.jobs AS j ON j.actor = k.actor
    AND j.standing_on BETWEEN (now() AT TIME ZONE 'UTC')::date - 7 AND (now() AT TIME ZONE 'UTC')::date - 1
JOIN callboard.items AS i ON i.job_id = j.id AND i.item_key = k.item_key
WHERE i.finished_at IS NULL OR i.finished_at > now() - interval '1 hour'
ORDER BY k.item_key, i.job_id DESC
