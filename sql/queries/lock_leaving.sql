-- lock_leaving: a leaving job, before its last rows go. Caller: leaving.clear.
-- Rows: (whether all of its items are gone); none: it is gone itself. An outcome that adds children adds to the total
-- under this lock, and none can come once the items are gone.
SELECT cleared >= total FROM callboard.jobs WHERE id = %s AND leaving_at IS NOT NULL FOR UPDATE
