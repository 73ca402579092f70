-- clear_lanes: of jobs that are over nothing is in flight. Caller: the sweep.
DELETE FROM callboard.lanes AS l USING callboard.jobs AS j WHERE j.id = l.job_id AND j.finished_at IS NOT NULL
