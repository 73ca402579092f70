-- lock_submission: where a job's submission stands, locked until its next chunk is committed.
-- Caller: store_chunk. Rows: one, (total, consumed, sealed, stopped); none: no such job.
SELECT total, consumed, sealed, finished_at IS NOT NULL OR stopping IS NOT NULL FROM callboard.jobs WHERE id = %s FOR NO KEY UPDATE
