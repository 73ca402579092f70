-- keep_lease: stay the one that sweeps. Guard: the lease is this one's and has not lapsed. Caller: the sweep.
-- Rows: one; none: it lapsed, and somebody else may have swept since.
UPDATE callboard.leases SET until = now() + make_interval(secs => %(lease)s)
WHERE name = %(name)s AND holder = %(holder)s AND until >= now()
RETURNING name
