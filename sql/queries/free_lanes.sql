-- free_lanes: what ended, or waits in the outbox for another turn (a retry, parked, lost and sent again), leaves its lane.
-- What a publisher has claimed there is still in flight, also when the claim lapsed: it may have been sent.
-- Caller: the publisher, which holds the job's claim, and its lock. Lock order: the job, then lanes.
DELETE FROM callboard.lanes AS l
WHERE l.job_id = %(job)s
  AND ((SELECT finished_at IS NOT NULL FROM callboard.items AS i WHERE i.job_id = l.job_id AND i.item = l.item)
       OR EXISTS (SELECT FROM callboard.outbox AS o
                  WHERE o.job_id = l.job_id AND o.item = l.item AND o.claimed_until IS NULL OFFSET 0))
