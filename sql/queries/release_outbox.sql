-- release_outbox: these messages could not be published, or nobody knows; whoever claims them next sends them as suspect.
-- Caller: the publisher.
UPDATE callboard.outbox SET claimed_until = now() WHERE id = ANY(%s)
