-- oldest_beat: how long ago the live worker that has not beaten for longest did. Caller: the search for lost messages.
-- Rows: one, (seconds); NULL: no worker lives.
SELECT extract(epoch FROM now() - min(beat_at))::float8 FROM callboard.workers
WHERE stopped_at IS NULL AND died_at IS NULL
