-- put_off_callback: a try failed. Transition: claimed -> waiting for its next try | given up.
-- Guard: nobody has claimed it since. Caller: middleware/callbacks.py. Rows: (given up); none: overtaken, or deleted.
UPDATE callboard.callbacks
SET error = %(error)s, claimed_until = NULL, due_at = now() + make_interval(secs => %(pause)s),
    gave_up_at = CASE WHEN %(last)s THEN now() END
WHERE id = %(id)s::uuid AND tries = %(tries)s AND delivered_at IS NULL AND gave_up_at IS NULL
RETURNING gave_up_at IS NOT NULL
