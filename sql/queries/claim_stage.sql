-- claim_stage: the next stage whose items are to be made, for a worker that has its actor.
-- Guard: open, neither paused nor being stopped nor made; the stage before is completed, and what failed of it stops
-- nothing; nobody makes it, or a worker that is dead does, or this one did until the database was away.
-- Caller: Maker. Rows: (job, name, parent, makes, the stage before, inputs stored).
WITH next AS (
    SELECT s.id, b.id AS source FROM callboard.jobs AS s
    JOIN callboard.jobs AS b ON b.parent_id = s.parent_id AND b.stage = s.stage - 1
    JOIN callboard.jobs AS p ON p.id = s.parent_id
    WHERE p.stages IS NOT NULL AND p.finished_at IS NULL AND p.stopping IS NULL
      AND s.finished_at IS NULL AND s.stopping IS NULL AND s.state <> 'paused' AND NOT s.sealed
      AND b.state = 'completed' AND (b.failed = 0 OR b.on_failure = 'go on')
      AND s.actor = ANY (%(actors)s) AND s.id <> ALL (%(at_work)s::bigint[])
      AND (s.maker IS NULL OR s.maker = %(worker)s OR NOT EXISTS (
          SELECT FROM callboard.workers AS w WHERE w.id = s.maker AND w.stopped_at IS NULL AND w.died_at IS NULL
            AND w.beat_at > now() - make_interval(secs => %(dead_after)s)))
    ORDER BY s.id LIMIT 1 FOR NO KEY UPDATE OF s SKIP LOCKED
)
UPDATE callboard.jobs AS j SET maker = %(worker)s, updated_at = now()
FROM next WHERE j.id = next.id
RETURNING j.id, j.name, j.parent_id, j.makes, next.source, j.consumed
