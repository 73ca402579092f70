-- Whom a job calls when it ends, and every call that was queued by its end.

ALTER TABLE callboard.jobs
    -- By the state it ends with: {"completed": [{"url": …, "host": …}, {"actor": …, "queue": …}]}. NULL: it calls nobody.
    ADD COLUMN callbacks jsonb CHECK (jsonb_typeof(callbacks) = 'object');

-- So that the sweep finds ends that older code recorded. A job that calls nobody is in it never.
CREATE INDEX jobs_calling ON callboard.jobs (finished_at) WHERE callbacks IS NOT NULL AND finished_at IS NOT NULL;

CREATE TABLE callboard.callbacks (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),  -- what receivers tell repetitions by
    job_id          bigint NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz NOT NULL,               -- when its job ended: one that is opened again ends again
    due_at          timestamptz NOT NULL DEFAULT now(),
    claimed_until   timestamptz,                        -- past: its process vanished, so it may have been delivered
    delivered_at    timestamptz,
    gave_up_at      timestamptz,
    tries           integer NOT NULL DEFAULT 0,
    state           callboard.job_state NOT NULL,       -- what its job ended as
    url             text,                               -- of a webhook
    host            text,                               -- likewise: those of one host share what a process has
    actor           text,                               -- or of a message
    queue           text,                               -- likewise
    error           text,                               -- of the last try
    job             jsonb NOT NULL,                     -- the job's row when it ended
    CHECK ((url IS NULL) <> (actor IS NULL) AND (url IS NULL) = (host IS NULL) AND (actor IS NULL) = (queue IS NULL)),
    CHECK (delivered_at IS NULL OR gave_up_at IS NULL)
) WITH (fillfactor = 70);

CREATE INDEX callbacks_due ON callboard.callbacks (due_at) WHERE delivered_at IS NULL AND gave_up_at IS NULL;
CREATE INDEX callbacks_by_job ON callboard.callbacks (job_id);
