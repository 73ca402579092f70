-- take_lease: become the one that sweeps. Guard: nobody holds the lease, or it lapsed.
-- Caller: the sweep. Rows: one; none: somebody else sweeps.
INSERT INTO callboard.leases AS l (name, holder, until)
VALUES (%(name)s, %(holder)s, now() + make_interval(secs => %(lease)s))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE l.until < now()
RETURNING name
