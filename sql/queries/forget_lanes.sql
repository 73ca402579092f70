-- forget_lanes: lanes go by another argument now: those of a job's messages are told anew.
-- Caller: the publisher, which holds the job's claim.
UPDATE callboard.outbox SET lane = NULL WHERE job_id = %s AND lane IS NOT NULL
