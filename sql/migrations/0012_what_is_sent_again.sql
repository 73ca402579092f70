-- Messages that were published, have not run, and wait in the outbox all the same: they were lost, or came to a worker
-- without their actor. Of a limited job they don't count as out, and few as they are, all retries may lie beside them.

ALTER TABLE callboard.outbox ADD COLUMN again boolean NOT NULL DEFAULT false;
CREATE INDEX outbox_again ON callboard.outbox (job_id) WHERE again;
