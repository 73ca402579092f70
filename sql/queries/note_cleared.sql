-- note_cleared: every item of a leaving job below this one is gone. Caller: leaving.clear, in the transaction that
-- deletes them. Lock order: items by key, then jobs by id.
UPDATE callboard.jobs SET cleared = greatest(cleared, %(high)s) WHERE id = %(job)s AND leaving_at IS NOT NULL
