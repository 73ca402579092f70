-- standing_job: the job of the day (UTC) of an actor's plain sends, made when it isn't there yet.
-- Caller: the ledger of plain sends. Rows: one, (id).
WITH made AS (
    INSERT INTO callboard.jobs (name, actor, queue, standing_on)
    VALUES (%(actor)s, %(actor)s, %(queue)s, (now() AT TIME ZONE 'UTC')::date)
    ON CONFLICT (actor, standing_on) WHERE standing_on IS NOT NULL DO NOTHING
    RETURNING id
)
SELECT id FROM made
UNION ALL
SELECT id FROM callboard.jobs WHERE actor = %(actor)s AND standing_on = (now() AT TIME ZONE 'UTC')::date
LIMIT 1
