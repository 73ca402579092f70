-- set_aside: a stretch of bulk items goes into the outbox, each in its lane, to be published in the job's turn. The
-- watermark moves over it; the claim is renewed.
-- Guard: the claim is still this publisher's (its token), the job neither paused nor being stopped; an item waits and
-- has no message in the outbox. Caller: the publisher. Rows: (items set aside); none: undo.
-- Lock order: items by key, rows of the outbox, then the job: see republish, and why OFFSET 0.
WITH aside AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect, redo, lane)
    SELECT i.job_id, i.item, i.attempt, 'infinity', false, i.item < %(suspect_below)s, true, a.lane
    FROM (SELECT * FROM unnest(%(item)s::int[], %(lane)s::text[]) AS a (item, lane) ORDER BY item) AS a
    CROSS JOIN LATERAL (
        SELECT job_id, item, attempt, state FROM callboard.items AS i
        WHERE i.job_id = %(job)s AND i.item = a.item OFFSET 0 FOR NO KEY UPDATE
    ) AS i
    WHERE i.state = 'waiting'
    ON CONFLICT (job_id, item) DO NOTHING
    RETURNING item
), counted AS (
    SELECT count(*) AS aside FROM aside
)
UPDATE callboard.jobs AS j
SET watermark = %(watermark)s, published = j.published + cardinality(%(item)s::int[]), redo = j.redo + counted.aside,
    publish_until = now() + make_interval(secs => %(lease)s)
FROM counted
WHERE j.id = %(job)s AND j.publish_token = %(token)s AND j.publish_until IS NOT NULL AND j.watermark = %(start)s
  AND j.stopping IS NULL AND j.state <> 'paused'
RETURNING counted.aside
