-- What a job may do at most, and when. `limits` says it in the user's words.

ALTER TABLE callboard.jobs
    ADD COLUMN not_before   timestamptz,  -- nothing of it is published before
    ADD COLUMN deadline     timestamptz,  -- then it is cancelled
    ADD COLUMN fail_count   bigint,       -- more failed items than that stop it
    ADD COLUMN fail_share   float8,       -- or more than this share of what ended,
    ADD COLUMN fail_sample  bigint,       -- when at least so many have ended
    ADD COLUMN concurrency  integer,      -- items in RabbitMQ and in hand
    ADD COLUMN rate         float8,       -- items published a second
    ADD COLUMN rate_ready   timestamptz,  -- up to when what `rate` allows has been used
    ADD CHECK (least(fail_count, fail_sample, concurrency) > 0 AND least(fail_share, rate) > 0 AND fail_share < 1),
    ADD CHECK ((fail_share IS NULL) = (fail_sample IS NULL));

CREATE INDEX jobs_deadline ON callboard.jobs (deadline) WHERE deadline IS NOT NULL AND finished_at IS NULL;
