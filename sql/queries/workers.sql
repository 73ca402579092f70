-- workers: worker processes, the latest first. Caller: reads.workers.
-- Rows: one a worker; one whose heartbeat stopped is dead, whether or not a sweep has found it yet.
SELECT id, host, pid, threads, release, held, actors, queues, started_at, beat_at, state,
       CASE WHEN state = 'alive' THEN trouble END AS trouble,
       extract(epoch FROM now() - beat_at)::float8 AS beat_age, coalesce(stopped_at, died_at) AS ended_at
FROM (
    SELECT *, CASE WHEN stopped_at IS NOT NULL THEN 'stopped'
                   WHEN died_at IS NOT NULL OR beat_at < now() - make_interval(secs => %(dead_after)s) THEN 'dead'
                   ELSE 'alive' END AS state
    FROM callboard.workers WHERE id < %(before)s
) AS w
WHERE %(state)s::text IS NULL OR state = %(state)s::text
ORDER BY id DESC LIMIT %(limit)s
