-- stop_worker: a worker says goodbye. Caller: Worker.stop.
UPDATE callboard.workers SET stopped_at = now(), held = 0, holds = '{}' WHERE id = %s
