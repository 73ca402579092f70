-- take_lease: be the one that sweeps, or stay it. Guard: nobody holds the lease, its holder is this one, or it lapsed.
-- Caller: the sweep. Rows: one; none: somebody else sweeps.
INSERT INTO callboard.leases AS l (name, holder, until)
VALUES (%(name)s, %(holder)s, now() + make_interval(secs => %(lease)s))
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE l.holder = excluded.holder OR l.until < now()
RETURNING name
