-- overtaken: whether a queue has given out a message that came into it after a mark: then it has given out all that
-- came before. Items are looked at here and there, a few at a place: what came next may itself be lost.
-- Caller: the search for lost messages, of queues that keep the order. Rows: one, (yes or no).
WITH marked AS (
    SELECT * FROM unnest(%(job)s::bigint[], %(low)s::bigint[], %(total)s::bigint[]) AS m (job_id, low, total)
    UNION ALL
    (SELECT id, 0, 0 FROM callboard.jobs WHERE id > %(last)s ORDER BY id LIMIT 20)
    UNION ALL
    (SELECT id, 0, 0 FROM callboard.jobs WHERE id > %(last)s ORDER BY id DESC LIMIT 20)
)
SELECT EXISTS (
    SELECT FROM marked AS m
    JOIN callboard.jobs AS j ON j.id = m.job_id
    CROSS JOIN LATERAL (SELECT CASE WHEN j.watermark < j.bulk_end THEN j.watermark ELSE j.total END AS high) AS h
    CROSS JOIN generate_series(0, 7) AS nth
    CROSS JOIN LATERAL (
        SELECT * FROM callboard.items AS i
        WHERE i.job_id = m.job_id AND i.item >= m.low + (h.high - m.low) * nth / 8 AND i.item < h.high
        ORDER BY i.item LIMIT 3
    ) AS i
    WHERE h.high > m.low AND (i.message_id IS NULL OR i.item >= m.total) AND coalesce(i.queue, j.queue) = %(queue)s
      AND (i.state NOT IN ('waiting', 'cancelled') OR i.attempt > 1
           OR EXISTS (SELECT FROM callboard.running AS r WHERE r.job_id = i.job_id AND r.item = i.item))
)
