-- register_worker: a worker process starts. Caller: Worker.start. Rows: one, (id).
INSERT INTO callboard.workers (host, pid, threads, release, actors, queues)
VALUES (%(host)s, %(pid)s, %(threads)s, %(release)s, %(actors)s, %(queues)s)
RETURNING id
