-- job_controls: what these jobs tell the workers that hold their items. Caller: the heartbeat. Rows: Control.
SELECT id, state::text, epoch FROM callboard.jobs WHERE id = ANY(%s)
