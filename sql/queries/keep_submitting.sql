-- keep_submitting: the submissions of these jobs are still going on, whatever their sources take their time for.
-- Guard: neither sealed nor stopped. Caller: Submitting. Lock order: jobs by id.
WITH kept AS (
    SELECT id FROM callboard.jobs WHERE id = ANY(%(jobs)s) AND NOT sealed AND finished_at IS NULL
    ORDER BY id FOR NO KEY UPDATE
)
UPDATE callboard.jobs AS j SET submitting_until = now() + make_interval(secs => %(lease)s)
FROM kept WHERE j.id = kept.id
