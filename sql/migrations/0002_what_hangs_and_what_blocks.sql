-- What a worker hangs at, what keeps it from publishing, and whether a submission is still going on.

ALTER TABLE callboard.running
    ADD COLUMN stack    text,         -- where it has stood for long: the innermost frames, the innermost first
    ADD COLUMN place    text,         -- of these frames, the innermost that is neither a library's nor Python's
    ADD COLUMN stack_at timestamptz;  -- when that was looked at

ALTER TABLE callboard.workers
    ADD COLUMN trouble  text;         -- what keeps this process from publishing, as of its last beat; NULL: nothing

ALTER TABLE callboard.jobs
    ADD COLUMN submitting_until timestamptz;  -- past, and not sealed: its submitter is gone; NULL: nobody says

ALTER TABLE callboard.items
    ADD COLUMN retry_options bytea;  -- of the last retry, until the item is final: a copy sent later carries them on

ALTER TABLE callboard.outbox
    ADD COLUMN dead boolean NOT NULL DEFAULT false;  -- for the dead letters: its item is failed, and no message is left
