-- beat: a worker lives, and holds these items. One that was found dead and is not comes back to life.
-- Caller: the heartbeat.
UPDATE callboard.workers SET beat_at = now(), died_at = NULL, held = %(held)s, holds = %(holds)s WHERE id = %(worker)s
