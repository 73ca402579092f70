-- Finished jobs leave after a time, with all of their rows.

ALTER TABLE callboard.jobs
    ADD COLUMN keep       float8,       -- seconds from its end until it leaves; infinity: for ever; NULL: as the sweep says
    ADD COLUMN leaving_at timestamptz,  -- since when it is leaving: nobody sees it any more, and its rows go
    ADD COLUMN cleared    bigint NOT NULL DEFAULT 0,  -- while it is leaving: every item below it is gone
    ADD CHECK (keep > 0),
    ADD CHECK (leaving_at IS NULL OR finished_at IS NOT NULL AND key IS NULL AND standing_on IS NULL);

CREATE INDEX jobs_ended ON callboard.jobs (finished_at) WHERE keep IS NULL AND leaving_at IS NULL AND finished_at IS NOT NULL;
CREATE INDEX jobs_kept ON callboard.jobs (finished_at) WHERE keep IS NOT NULL AND leaving_at IS NULL AND finished_at IS NOT NULL;
CREATE INDEX jobs_leaving ON callboard.jobs (id) WHERE leaving_at IS NOT NULL;

-- Jobs that left while messages of theirs may still have been in RabbitMQ: a worker must not run those.
CREATE TABLE callboard.gone (
    id              bigint PRIMARY KEY,   -- the job's
    epoch           integer NOT NULL,
    gone_at         timestamptz NOT NULL DEFAULT now()
);
