-- settle_outbox: these messages are confirmed. Transition: retrying -> waiting; a first message counts as published, one
-- that was published in its job's turn waits for it no more.
-- Guard: the outbox row still holds the attempt that was sent. One that was written anew meanwhile, for the retry of an
-- attempt that failed already or as its dead letter, stays.
-- Caller: the publisher. Lock order: items by key, their outbox rows, then jobs by id.
WITH sent AS (
    SELECT id, max(attempt) AS attempt FROM unnest(%(id)s::bigint[], %(attempt)s::int[]) AS s (id, attempt) GROUP BY id
), held AS (
    SELECT o.id, s.attempt, i.attempt = s.attempt AND i.state = 'retrying' AS waits
    FROM sent AS s JOIN callboard.outbox AS o ON o.id = s.id
    JOIN callboard.items AS i ON i.job_id = o.job_id AND i.item = o.item
    ORDER BY i.job_id, i.item FOR NO KEY UPDATE OF i
), lying AS (
    SELECT o.id, o.job_id, o.first, o.redo, h.waits, o.attempt = h.attempt AND o.claimed_until IS NOT NULL AS done
    FROM held AS h JOIN callboard.outbox AS o ON o.id = h.id
    FOR UPDATE OF o
), gone AS (
    DELETE FROM callboard.outbox AS o USING lying AS l WHERE o.id = l.id AND l.done
    RETURNING o.job_id, o.item, l.waits
), kept AS (
    UPDATE callboard.outbox AS o SET first = false, redo = false
    FROM lying AS l WHERE o.id = l.id AND NOT l.done AND (l.first OR l.redo)
), moved AS (
    UPDATE callboard.items AS i SET was = i.state, state = 'waiting'
    FROM gone AS g WHERE i.job_id = g.job_id AND i.item = g.item AND g.waits
    RETURNING i.job_id
), delta AS (
    SELECT job_id, sum(published) AS published, sum(retrying) AS retrying, sum(redo) AS redo
    FROM (
        SELECT job_id, count(*) FILTER (WHERE first) AS published, 0 AS retrying, count(*) FILTER (WHERE redo) AS redo
        FROM lying GROUP BY job_id
        UNION ALL
        SELECT job_id, 0, count(*), 0 FROM moved GROUP BY job_id
    ) AS part
    GROUP BY job_id
), locked AS (
    SELECT j.id FROM callboard.jobs AS j JOIN delta AS d ON d.job_id = j.id ORDER BY j.id FOR NO KEY UPDATE OF j
)
UPDATE callboard.jobs AS j
SET published = j.published + d.published, retrying = j.retrying - d.retrying, redo = j.redo - d.redo, updated_at = now()
FROM delta AS d JOIN locked AS l ON l.id = d.job_id
WHERE j.id = d.job_id
