-- What may be said to a job while it runs, and by whom it was. No CHECK names the new state: it can't be used in the
-- transaction that adds it.

ALTER TYPE callboard.item_state ADD VALUE 'cancelled';  -- its job goes on without it

ALTER TABLE callboard.jobs
    ADD COLUMN stopping  callboard.job_state,        -- what it will be when its last item in hand ended; NULL: it goes on
    ADD COLUMN told_at   timestamptz,                -- when it was last told what its workers must know
    ADD COLUMN cancelled bigint NOT NULL DEFAULT 0,  -- items with that state
    ADD COLUMN redo      bigint NOT NULL DEFAULT 0,  -- messages in the outbox that are published in the job's turn
    DROP CONSTRAINT jobs_check1,
    DROP CONSTRAINT jobs_check4,
    ADD CHECK (succeeded + failed + skipped + cancelled + retrying <= total AND least(cancelled, redo) >= 0),
    ADD CHECK (state <> 'completed' OR (sealed AND succeeded + failed + skipped + cancelled = total)),
    ADD CHECK (stopping IS NULL OR stopping IN ('failed', 'cancelled') AND finished_at IS NULL);

CREATE INDEX jobs_told ON callboard.jobs (told_at) WHERE told_at IS NOT NULL;

ALTER TABLE callboard.items
    DROP CONSTRAINT items_check,
    ADD CHECK ((finished_at IS NOT NULL) = (state NOT IN ('waiting', 'retrying')));

ALTER TABLE callboard.outbox
    ADD COLUMN redo boolean NOT NULL DEFAULT false;  -- published in its job's turn and as there is room: due at infinity

-- Who did what to a job.
CREATE TABLE callboard.actions (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id          bigint NOT NULL,
    done_at         timestamptz NOT NULL DEFAULT now(),
    action          text NOT NULL,
    who             text NOT NULL DEFAULT '',   -- as far as it is known
    via             text NOT NULL,              -- the command line, HTTP, Python: and from where
    detail          jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(detail) = 'object')
);

CREATE INDEX actions_by_job ON callboard.actions (job_id, id);
