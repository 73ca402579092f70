-- take_parent: the lock of a job of stages, if nobody has it: a heartbeat must not wait for who retries a million items.
-- Caller: stages.follow. Rows: (id); none: somebody has it; the next look comes soon.
SELECT id FROM callboard.jobs WHERE id = %s AND finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED
