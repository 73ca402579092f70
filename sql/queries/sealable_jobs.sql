-- sealable_jobs: standing jobs whose day (UTC) is over. Caller: the sweep. Rows: (id).
SELECT id FROM callboard.jobs
WHERE finished_at IS NULL AND NOT sealed AND standing_on < (now() AT TIME ZONE 'UTC')::date ORDER BY id
