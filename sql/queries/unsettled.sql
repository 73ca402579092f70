-- unsettled: open jobs of stages whose state doesn't follow that of their stages yet: one has begun, one ended in a way
-- that stops the others (and none before it is just being stopped: that is the reason then), or none is open any more. Caller: stages.follow. Rows: (id).
SELECT p.id FROM callboard.jobs AS p
WHERE p.stages IS NOT NULL AND p.finished_at IS NULL
  AND (NOT EXISTS (SELECT FROM callboard.jobs AS s WHERE s.parent_id = p.id AND s.finished_at IS NULL)
       OR p.state = 'pending' AND EXISTS (
           SELECT FROM callboard.jobs AS s WHERE s.parent_id = p.id AND s.started_at IS NOT NULL)
       OR p.stopping IS NULL AND EXISTS (
           SELECT FROM callboard.jobs AS s WHERE s.parent_id = p.id AND s.finished_at IS NOT NULL
             AND (s.state <> 'completed' OR s.failed > 0 AND s.on_failure = 'stop')
             AND NOT EXISTS (SELECT FROM callboard.jobs AS b
                             WHERE b.parent_id = p.id AND b.stage < s.stage AND b.stopping IS NOT NULL)))
ORDER BY p.id
