-- give_back: a claimed item is not run yet: it waits for its turn, and no death is to be charged to it meanwhile.
-- Guard: this worker holds it. Caller: Hand, for an item that is to run alone. No row: it was taken for dead and buried.
DELETE FROM callboard.running WHERE job_id = %(job)s AND item = %(item)s AND worker = %(worker)s
