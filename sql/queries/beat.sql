-- beat: a worker lives, holds these items, and has this trouble with its broker. One that was found dead and is not comes back to life.
-- Caller: the heartbeat.
UPDATE callboard.workers
SET beat_at = now(), died_at = NULL, held = %(held)s, holds = %(holds)s, trouble = %(trouble)s
WHERE id = %(worker)s
