-- park: messages of paused jobs arrived; they leave RabbitMQ and are published again, in order, when their job goes on.
-- Transition: retrying -> waiting, for it was published. Guard: the row still carries that attempt and isn't final.
-- A row of the outbox that its publisher has not settled yet gets a new id, so that settling it does not lose this one.
-- Caller: Parking. Lock order: items by key, their outbox rows, then jobs by id.
WITH held AS (
    SELECT i.job_id, i.item, i.attempt, i.state, i.attempt = g.attempt AND i.state IN ('waiting', 'retrying') AS open
    FROM unnest(%(job)s::bigint[], %(item)s::int[], %(attempt)s::int[]) AS g (job_id, item, attempt)
    JOIN callboard.items AS i ON i.job_id = g.job_id AND i.item = g.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
), open AS (
    SELECT job_id, item, attempt, state FROM held WHERE open
), lying AS (
    SELECT o.job_id, o.item, o.first, o.redo
    FROM open JOIN callboard.outbox AS o ON o.job_id = open.job_id AND o.item = open.item
    ORDER BY o.job_id, o.item FOR UPDATE OF o
), waiting AS (
    UPDATE callboard.items AS i SET was = i.state, state = 'waiting'
    FROM open AS o WHERE i.job_id = o.job_id AND i.item = o.item AND o.state = 'retrying'
    RETURNING i.job_id
), parked AS (
    INSERT INTO callboard.outbox (job_id, item, attempt, due_at, first, suspect, redo)
    SELECT o.job_id, o.item, o.attempt, 'infinity', false, true, true
    FROM open AS o WHERE (SELECT count(*) FROM lying) >= 0  -- these first
    ORDER BY o.job_id, o.item
    ON CONFLICT (job_id, item) DO UPDATE
    SET id = DEFAULT, attempt = excluded.attempt, due_at = excluded.due_at, first = false, suspect = true, redo = true,
        claimed_until = NULL
), delta AS (
    SELECT job_id, sum(redo) AS redo, sum(published) AS published, sum(retrying) AS retrying
    FROM (
        SELECT job_id, count(*) AS redo, 0 AS published, 0 AS retrying FROM open GROUP BY job_id
        UNION ALL
        SELECT job_id, -count(*) FILTER (WHERE redo), count(*) FILTER (WHERE first), 0 FROM lying GROUP BY job_id
        UNION ALL
        SELECT job_id, 0, 0, count(*) FROM waiting GROUP BY job_id
    ) AS part
    GROUP BY job_id
), locked AS (
    SELECT j.id FROM callboard.jobs AS j JOIN delta AS d ON d.job_id = j.id ORDER BY j.id FOR NO KEY UPDATE OF j
)
UPDATE callboard.jobs AS j
SET redo = j.redo + d.redo, published = j.published + d.published, retrying = j.retrying - d.retrying, updated_at = now()
FROM delta AS d JOIN locked AS l ON l.id = d.job_id
WHERE j.id = d.job_id
