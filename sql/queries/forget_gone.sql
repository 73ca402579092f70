-- forget_gone: jobs that left so long ago that no message of theirs is left. Caller: the sweep, `callboard purge`.
DELETE FROM callboard.gone WHERE gone_at < now() - make_interval(secs => %(after)s)
