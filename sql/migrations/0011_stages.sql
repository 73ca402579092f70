-- Stages: jobs that follow one another, each a row of its own, tied together by a parent that has no items. The parent's
-- row stays unsealed while it is open, and its columns of limits empty: so what sweeps in an older release leaves it alone.

ALTER TABLE callboard.jobs
    ADD COLUMN stages     integer,  -- of a parent: how many it has; NULL: a job with items
    ADD COLUMN parent_id  bigint,   -- of a stage: whose it is
    ADD COLUMN stage      integer,  -- of a stage: which it is, from 0
    ADD COLUMN makes      text,     -- the function that makes its items, "module:name"; NULL: it takes results as items
    ADD COLUMN on_failure text,     -- what failed items do to the stages after it: stop, go on
    ADD COLUMN maker      integer,  -- the worker that makes its items just now; one that is dead has left it
    ADD CONSTRAINT jobs_stages CHECK (stages IS NULL OR stages > 0 AND total = 0 AND parent_id IS NULL),
    ADD CONSTRAINT jobs_stage CHECK ((parent_id IS NULL) = (stage IS NULL) AND (stage IS NULL) = (on_failure IS NULL)),
    ADD CONSTRAINT jobs_on_failure CHECK (on_failure IN ('stop', 'go on'));

CREATE UNIQUE INDEX jobs_by_parent ON callboard.jobs (parent_id, stage) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_staged ON callboard.jobs (id) WHERE stages IS NOT NULL AND finished_at IS NULL;
