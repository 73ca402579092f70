-- settle_callback: a callback is delivered. Guard: it wasn't before; one that was given up meanwhile is delivered all the same.
-- Caller: middleware/callbacks.py; for a message in the transaction that makes it an item, so that it is queued once.
-- Rows: (id); none: it was delivered, or its job is deleted. Lock order: after the jobs.
UPDATE callboard.callbacks SET delivered_at = now(), gave_up_at = NULL, claimed_until = NULL, error = NULL
WHERE id = %(id)s::uuid AND delivered_at IS NULL
RETURNING id
