-- drop_lease: somebody else may sweep. Caller: the sweep, when it stops.
DELETE FROM callboard.leases WHERE name = %s AND holder = %s
