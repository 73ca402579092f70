-- leaving_reach: how far a leaving job is cleared away. Items are numbered from 0, without gaps, up to its total.
-- Caller: leaving.clear. Rows: (cleared, total); none: it is gone.
SELECT cleared, total FROM callboard.jobs WHERE id = %s AND leaving_at IS NOT NULL
