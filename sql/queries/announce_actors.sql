-- announce_actors: what a worker can run. Caller: register_worker.
INSERT INTO callboard.actors AS a (name, queue)
SELECT * FROM unnest(%s::text[], %s::text[]) AS n (name, queue) ORDER BY 1
ON CONFLICT (name) DO UPDATE SET queue = excluded.queue, seen_at = now()
