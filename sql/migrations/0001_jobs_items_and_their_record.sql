-- The whole record of jobs: what was asked for, what happened, what is still to be published.
-- Every name is qualified: a pooler in transaction mode keeps no search_path.

-- Starting at the seconds since 2025 keeps the ids of a database that was made anew apart from those of the one
-- before it, whose messages may still lie in RabbitMQ.
CREATE SEQUENCE callboard.job_ids;
SELECT setval('callboard.job_ids', greatest(1, extract(epoch FROM now() - timestamptz '2025-01-01Z')::bigint));

CREATE TYPE callboard.job_state AS ENUM (
    'pending',    -- no item has started
    'running',    -- at least one item has started
    'paused',     -- nothing new starts until it is resumed
    'completed',  -- sealed, and every item is final, whatever the mix
    'failed',     -- stopped: it passed its failure limit, or its submission broke off
    'cancelled'   -- stopped by somebody
);

CREATE TYPE callboard.item_state AS ENUM (
    'waiting',    -- not final and not waiting for a retry: pending, queued or running, by what the job row says
    'retrying',   -- an attempt failed, the next has a time
    'succeeded',
    'failed',
    'skipped'
);

CREATE TYPE callboard.attempt_kind AS ENUM (
    'failed',     -- the actor raised
    'timed_out',  -- its time limit or the message's age limit struck
    'crashed',    -- its worker died while it held the item
    'skipped'     -- the actor raised Skip
);

CREATE TABLE callboard.jobs (
    id              bigint PRIMARY KEY DEFAULT nextval('callboard.job_ids'),
    total           bigint NOT NULL DEFAULT 0,  -- items stored
    consumed        bigint NOT NULL DEFAULT 0,  -- inputs read, repeated item keys included: where a submission goes on
    bulk_end        bigint NOT NULL DEFAULT 0,  -- every bulk item is below it
    watermark       bigint NOT NULL DEFAULT 0,  -- every bulk item below it is published
    suspect_below   bigint NOT NULL DEFAULT 0,  -- a bulk item below it may have been published before
    published       bigint NOT NULL DEFAULT 0,  -- items published at least once
    retrying        bigint NOT NULL DEFAULT 0,
    succeeded       bigint NOT NULL DEFAULT 0,
    failed          bigint NOT NULL DEFAULT 0,
    skipped         bigint NOT NULL DEFAULT 0,
    retries         bigint NOT NULL DEFAULT 0,  -- attempts that failed and were given another
    crashes         bigint NOT NULL DEFAULT 0,  -- worker's deaths charged to its items
    publish_token   bigint NOT NULL DEFAULT 0,  -- fences a publisher whose claim was taken over
    publish_until   timestamptz,                -- the claim of the publisher at work; past: it was abandoned
    served_at       timestamptz,                -- when a publisher last took a batch: jobs are served in turn
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    finished_at     timestamptz,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    epoch           integer NOT NULL DEFAULT 0,
    priority        integer NOT NULL DEFAULT 0,
    standing_on     date,                       -- the UTC day of a standing job
    state           callboard.job_state NOT NULL DEFAULT 'pending',
    sealed          boolean NOT NULL DEFAULT false,
    name            text NOT NULL CHECK (name <> ''),
    key             text,
    tenant          text NOT NULL DEFAULT '',
    actor           text,                       -- of every item that names none
    queue           text,                       -- likewise
    reason          text,                       -- why it stopped
    step            text,                       -- what an item last said it is doing
    created_by      text,
    metadata        jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    limits          jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(limits) = 'object'),
    CHECK (least(total, consumed, bulk_end, watermark, published, retrying, succeeded, failed, skipped, retries, crashes) >= 0),
    CHECK (succeeded + failed + skipped + retrying <= total),
    CHECK (published <= total AND watermark <= bulk_end AND bulk_end <= total),
    CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled'))),
    CHECK (state <> 'completed' OR (sealed AND succeeded + failed + skipped = total)),
    CHECK (state <> 'pending' OR started_at IS NULL)
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0.05);

-- No counter is in an index: each flush updates a job row, and must stay a heap-only update.
CREATE UNIQUE INDEX jobs_by_key ON callboard.jobs (tenant, key) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX jobs_standing ON callboard.jobs (actor, standing_on) WHERE standing_on IS NOT NULL;
CREATE INDEX jobs_open ON callboard.jobs (id) WHERE finished_at IS NULL;

-- 10,000,000 rows of one job are usual. No foreign key (it halves the COPY), no index on a column that changes.
CREATE TABLE callboard.items (
    job_id          bigint NOT NULL,
    sent_at         timestamptz,                -- when a plain send or a child was sent; NULL: a bulk item
    started_at      timestamptz,                -- of the last attempt that ended
    finished_at     timestamptz,
    item            integer NOT NULL CHECK (item >= 0),
    attempt         integer NOT NULL DEFAULT 1 CHECK (attempt >= 1),  -- the attempt that is next or in hand, or was last
    state           callboard.item_state NOT NULL DEFAULT 'waiting',
    was             callboard.item_state,       -- the state left by the last transition, read as locked
    worker          integer,                    -- whose outcome was the last recorded
    crashes         smallint NOT NULL DEFAULT 0,
    actor           text,                       -- NULL: the job's
    queue           text,                       -- NULL: the job's
    message_id      text,                       -- NULL: a bulk item, published by the watermark; its id is made from job and item
    item_key        text,
    args            bytea NOT NULL,             -- {"args": […], "kwargs": {…}} as the app's encoder wrote it
    options         bytea,                      -- the message's own options, likewise; NULL: none
    PRIMARY KEY (job_id, item),
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'skipped')))
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE UNIQUE INDEX items_by_key ON callboard.items (job_id, item_key) WHERE item_key IS NOT NULL;

-- Apart from items: a result in the row would cost it the heap-only update.
CREATE TABLE callboard.results (
    job_id          bigint NOT NULL,
    item            integer NOT NULL,
    value           text NOT NULL,              -- JSON; text, since jsonb changes numbers and refuses NUL
    PRIMARY KEY (job_id, item)
);

CREATE TABLE callboard.attempts (
    job_id          bigint NOT NULL,
    started_at      timestamptz,
    ended_at        timestamptz NOT NULL,
    item            integer NOT NULL,
    attempt         integer NOT NULL,
    worker          integer,
    traceback_size  integer NOT NULL DEFAULT 0, -- characters before it was cut
    kind            callboard.attempt_kind NOT NULL,
    retried         boolean NOT NULL,           -- another attempt was scheduled
    error_type      text NOT NULL,
    place           text NOT NULL DEFAULT '',   -- file, line and function that raised
    message         text NOT NULL,
    traceback       text NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, item, attempt)
);

-- One row per kind of error: its type and the place that raised it. Bounded by the code, not by the number of items.
CREATE TABLE callboard.errors (
    job_id          bigint NOT NULL,
    count           bigint NOT NULL,            -- attempts
    failed          bigint NOT NULL,            -- of them, those that ended their item
    first_at        timestamptz NOT NULL,
    last_at         timestamptz NOT NULL,
    item            integer NOT NULL,           -- the example's
    kind            callboard.attempt_kind NOT NULL,
    error_type      text NOT NULL,
    place           text NOT NULL,
    message         text NOT NULL,              -- the example's
    PRIMARY KEY (job_id, kind, error_type, place)
) WITH (fillfactor = 70);

-- What is in hand and has been for a while. Small: never more rows than there are worker threads.
CREATE TABLE callboard.running (
    job_id          bigint NOT NULL,
    started_at      timestamptz NOT NULL,
    item            integer NOT NULL,
    attempt         integer NOT NULL,
    worker          integer NOT NULL,
    step            text,
    PRIMARY KEY (job_id, item)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX running_by_worker ON callboard.running (worker);

-- What is to be published and has no place in a job's bulk range: plain sends, children, retries, orphans, delays.
CREATE TABLE callboard.outbox (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id          bigint NOT NULL,
    due_at          timestamptz NOT NULL,
    claimed_until   timestamptz,                -- past: its publisher vanished, so it may have been published
    sent_ms         bigint,                     -- message_timestamp to keep; NULL: the time of publishing
    item            integer NOT NULL,
    attempt         integer NOT NULL,
    first           boolean NOT NULL,           -- the item was never published before
    suspect         boolean NOT NULL DEFAULT false,
    options         bytea,                      -- the message's options from now on; NULL: the item's own
    UNIQUE (job_id, item)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX outbox_due ON callboard.outbox (due_at);

CREATE TABLE callboard.workers (
    id              integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pid             integer NOT NULL,
    threads         integer NOT NULL,
    held            integer NOT NULL DEFAULT 0, -- items in its hands or prefetched
    started_at      timestamptz NOT NULL DEFAULT now(),
    beat_at         timestamptz NOT NULL DEFAULT now(),
    stopped_at      timestamptz,                -- it said goodbye
    died_at         timestamptz,                -- it was found dead
    host            text NOT NULL,
    release         text NOT NULL DEFAULT '',
    actors          text[] NOT NULL,
    queues          text[] NOT NULL,
    holds           bigint[] NOT NULL DEFAULT '{}'  -- what it held at its last beat: job, item, job, item …
) WITH (fillfactor = 50);

CREATE INDEX workers_alive ON callboard.workers (id) WHERE stopped_at IS NULL AND died_at IS NULL;

-- Every actor that any worker ever announced: the web app and the command line need not import users' code.
CREATE TABLE callboard.actors (
    name            text PRIMARY KEY,
    queue           text NOT NULL,
    seen_at         timestamptz NOT NULL DEFAULT now()
);

-- A point every few seconds of each job that moves: rate, estimate and chart.
CREATE TABLE callboard.samples (
    job_id          bigint NOT NULL,
    taken_at        timestamptz NOT NULL DEFAULT now(),
    final           bigint NOT NULL,
    failed          bigint NOT NULL,
    PRIMARY KEY (job_id, taken_at)
);

CREATE TABLE callboard.leases (
    name            text PRIMARY KEY,
    holder          text NOT NULL,
    until           timestamptz NOT NULL
);
