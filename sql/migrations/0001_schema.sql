-- Everything that Callboard keeps: jobs and their items, then the record of what happened, then who works on it.
-- Every name is qualified: a pooler in transaction mode keeps no search_path. No table has a foreign key: one on `items`
-- halves the speed of COPY. In tables of many rows the widest columns of fixed width come first: no byte is lost between.

CREATE TYPE callboard.job_state AS ENUM (
    'pending',    -- no item has started
    'running',    -- at least one item has started
    'paused',     -- nothing new starts until it is resumed
    'completed',  -- final: sealed, and every item is final, whatever the mix
    'failed',     -- final: stopped, since it passed its failure limit, or its submission broke off
    'cancelled'   -- final: stopped by somebody, or by its deadline
);

CREATE TYPE callboard.item_state AS ENUM (
    'waiting',    -- neither final nor waiting for a retry: pending, queued or running, by what the job row says
    'retrying',   -- an attempt failed, the next has a time
    'succeeded',  -- final: the actor returned
    'failed',     -- final: its last attempt failed
    'skipped',    -- final: the actor raised Skip
    'cancelled'   -- final: its job was stopped and goes on without it; in a job that stays stopped no row says so
);

CREATE TYPE callboard.attempt_kind AS ENUM (
    'failed',     -- the actor raised
    'timed_out',  -- its time limit or the message's age limit struck
    'crashed',    -- its worker died while it held the item
    'skipped',    -- the actor raised Skip
    'postponed'   -- the actor raised Postpone: no failure, and another attempt has its time
);

-- What one column must be is said by its type where the table `jobs` has many updates: PostgreSQL looks at a type's
-- condition when the column is given a value, and at each CHECK of a table in each statement that updates a row.
CREATE DOMAIN callboard.filled_text AS text CHECK (VALUE <> '');
CREATE DOMAIN callboard.json_object AS jsonb CHECK (jsonb_typeof(VALUE) = 'object');
CREATE DOMAIN callboard.whole_from_0 AS bigint CHECK (VALUE >= 0);
CREATE DOMAIN callboard.whole_from_1 AS bigint CHECK (VALUE >= 1);
CREATE DOMAIN callboard.above_0 AS float8 CHECK (VALUE > 0);
CREATE DOMAIN callboard.share AS float8 CHECK (VALUE > 0 AND VALUE < 1);
CREATE DOMAIN callboard.after_failure AS text CHECK (VALUE IN ('stop', 'go on'));

-- Starting at the seconds since 2025 keeps the ids of a database that was made anew apart from those of the one
-- before it, whose messages may still lie in RabbitMQ.
CREATE SEQUENCE callboard.job_ids;
SELECT setval('callboard.job_ids', greatest(1, extract(epoch FROM now() - timestamptz '2025-01-01Z')::bigint));

-- A set of items; or a standing job: an actor's plain sends of one day; or a parent of stages; or one of its stages.
-- The counters are always exact: they move in the transaction that moves the items.
CREATE TABLE callboard.jobs (
    id               bigint PRIMARY KEY DEFAULT nextval('callboard.job_ids'),

    -- What was asked for.
    created_at       timestamptz NOT NULL DEFAULT now(),
    standing_on      date,                       -- the UTC day of a standing job; one that is sealed has left it to another
    chunk            callboard.whole_from_1,     -- bulk items that one message carries at most; NULL: the publisher chooses
    name             callboard.filled_text NOT NULL,
    key              text,                       -- the same key of the same tenant gives the same job
    tenant           text NOT NULL DEFAULT '',
    actor            text,                       -- of every item that names none
    queue            text,                       -- likewise
    created_by       text,
    metadata         callboard.json_object NOT NULL DEFAULT '{}',
    trace            jsonb,                      -- what OpenTelemetry carries on from its submission; NULL: it is off
    -- By the state it ends with: {"completed": [{"url": …, "host": …}, {"actor": …, "queue": …}]}. NULL: it calls nobody.
    callbacks        callboard.json_object,

    -- Its state.
    started_at       timestamptz,
    finished_at      timestamptz,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    control_at       timestamptz,                -- when `epoch` was last raised: workers read what was raised lately
    epoch            integer NOT NULL DEFAULT 0, -- raised by all that workers must know; a message of an older one is suspect
    state            callboard.job_state NOT NULL DEFAULT 'pending',
    stopping         callboard.job_state,        -- its state once the last running item has ended; NULL: it goes on
    sealed           boolean NOT NULL DEFAULT false,  -- no more items come from outside
    -- When it ended, if it may count as failing: it failed, or has items that did, or has stages, which may. While it is open
    -- this is NULL, so that it may be in an index.
    failed_at        timestamptz GENERATED ALWAYS AS (
        CASE WHEN failed > 0 OR state = 'failed' OR stages IS NOT NULL THEN finished_at END) STORED,
    reason           text,                       -- why it stopped
    step             text,                       -- what an item last said it is doing

    -- Its counters, of items but for `in_turn`, `retries` and `crashes`.
    total            bigint NOT NULL DEFAULT 0,  -- items stored
    published        bigint NOT NULL DEFAULT 0,  -- items published at least once
    retrying         bigint NOT NULL DEFAULT 0,
    succeeded        bigint NOT NULL DEFAULT 0,
    failed           bigint NOT NULL DEFAULT 0,
    skipped          bigint NOT NULL DEFAULT 0,
    cancelled        bigint NOT NULL DEFAULT 0,  -- items with that state
    in_turn          bigint NOT NULL DEFAULT 0,  -- rows of the outbox with `in_turn`
    retries          bigint NOT NULL DEFAULT 0,  -- attempts that failed and were given another; not those postponed
    crashes          bigint NOT NULL DEFAULT 0,  -- deaths of workers charged to its items
    unkept           bigint NOT NULL DEFAULT 0,  -- items that succeeded and whose result is not kept

    -- Its place in the table, as its last flush found it: see count_outcomes.
    page             bigint NOT NULL DEFAULT -1,
    moves            integer NOT NULL DEFAULT 0, -- how often that was another page than the time before

    -- Its submission.
    consumed         bigint NOT NULL DEFAULT 0,  -- inputs read, repeated item keys included: where a submission goes on
    digest           bytea NOT NULL DEFAULT '',  -- of these inputs, if it has a key: by it they are known again
    asked            jsonb,                      -- digests of the options that it was submitted with, if it has a key
    submitting_until timestamptz,                -- past, and not sealed: its submitter is gone; NULL: nobody submits it, and
                                                 -- it is open for more items, if it is neither standing nor of stages
    held             boolean NOT NULL DEFAULT false,  -- none of its bulk items is published before all are stored

    -- Its publishing.
    bulk_end         bigint NOT NULL DEFAULT 0,  -- every bulk item is below it
    watermark        bigint NOT NULL DEFAULT 0,  -- every bulk item below it is published
    suspect_below    bigint NOT NULL DEFAULT 0,  -- a bulk item below it may have been published before
    publish_token    bigint NOT NULL DEFAULT 0,  -- fences a publisher whose claim was taken over
    publish_until    timestamptz,                -- the claim of the publisher at work; past: it was abandoned
    rate_ready       timestamptz,                -- up to when what `rate` allows has been used

    -- Its limits. `limits` has them in the user's words. Those of a parent are its stages', so all but `keep` are NULL.
    not_before       timestamptz,                -- nothing of it is published before
    deadline         timestamptz,                -- then it is cancelled
    fail_count       callboard.whole_from_0,     -- more failed items than that stop it
    fail_share       callboard.share,            -- or more than this share of what ended,
    fail_sample      callboard.whole_from_1,     -- when at least so many have ended
    rate             callboard.above_0,          -- items published a second
    concurrency      callboard.whole_from_1,     -- items in RabbitMQ or running
    priority         integer NOT NULL DEFAULT 0, -- lower is served first
    lane_width       callboard.whole_from_1,     -- items of a lane in RabbitMQ or running: see the table `lanes`
    lane_by          text,                       -- the argument that lanes go by: a keyword, or a position
    lanes            callboard.whole_from_1,     -- lanes of which items are in RabbitMQ or running
    -- Lanes that its items have asked to hold back: {"lane": {"until": …, "reason": …}}; "*": all of it, and see not_before.
    holds            callboard.json_object,
    applied_lane_by  text,                       -- the argument that the lanes of its messages go by now
    limits           callboard.json_object NOT NULL DEFAULT '{}',

    -- Its retention.
    keep             callboard.above_0,          -- seconds from its end to its deletion; infinity: never; NULL: as set
    deleted_at       timestamptz,                -- nobody sees it any more, and its rows are being deleted
    deletion_after   timestamptz,                -- it could not be deleted, for `reason`: when it is tried again
    deleted_below    bigint NOT NULL DEFAULT 0,  -- once it is deleted: every item row below it is gone

    -- Its stages: jobs that follow one another, each a row of its own, with a parent that has no items and is never
    -- sealed while it is open.
    parent_id        bigint,                     -- of a stage: its parent
    stages           integer,                    -- of a parent: how many it has
    stage            integer,                    -- of a stage: its number, from 0
    to_make          boolean NOT NULL DEFAULT false,  -- of a stage: the one before was completed, so its items can be made
    maker            integer,                    -- of a stage: the worker that makes its items; a dead one has left it
    makes            text,                       -- of a stage: the function that makes its items, "module:name"; NULL:
                                                 -- the results of the stage before are its items
    on_failure       callboard.after_failure,    -- of a stage: what failed items do to those after it

    CONSTRAINT jobs_counters_not_negative CHECK (least(
        total, consumed, bulk_end, watermark, published, retrying, succeeded, failed, skipped, cancelled, in_turn, retries,
        crashes, unkept) >= 0),
    CONSTRAINT jobs_items_add_up CHECK (succeeded + failed + skipped + cancelled + retrying <= total),
    CONSTRAINT jobs_published CHECK (published <= total AND watermark <= bulk_end AND bulk_end <= total),
    CONSTRAINT jobs_pending CHECK (state <> 'pending' OR started_at IS NULL),
    CONSTRAINT jobs_finished CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'failed', 'cancelled'))),
    CONSTRAINT jobs_completed CHECK (
        state <> 'completed' OR (sealed AND succeeded + failed + skipped + cancelled = total)),
    CONSTRAINT jobs_stopping CHECK (stopping IS NULL OR stopping IN ('failed', 'cancelled') AND finished_at IS NULL),
    CONSTRAINT jobs_limits CHECK (
        (fail_share IS NULL) = (fail_sample IS NULL) AND (lane_by IS NULL) = (lane_width IS NULL)
        AND (lanes IS NULL OR lane_by IS NOT NULL)),
    CONSTRAINT jobs_deletion CHECK (
        deleted_at IS NULL OR finished_at IS NOT NULL AND key IS NULL AND standing_on IS NULL),
    CONSTRAINT jobs_parent CHECK (stages IS NULL OR stages > 0 AND total = 0 AND parent_id IS NULL),
    CONSTRAINT jobs_stage CHECK ((parent_id IS NULL) = (stage IS NULL) AND (stage IS NULL) = (on_failure IS NULL))
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0.05);

-- A trigger names the columns that it looks at: what only moves other counters does not read its condition.
-- No counter is in an index: each flush updates a job row, and must stay a heap-only update.
CREATE UNIQUE INDEX jobs_by_key ON callboard.jobs (key, tenant) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX jobs_standing ON callboard.jobs (actor, standing_on) WHERE standing_on IS NOT NULL AND NOT sealed;
CREATE UNIQUE INDEX jobs_by_parent ON callboard.jobs (parent_id, stage) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_by_tenant ON callboard.jobs (tenant, id) INCLUDE (state) WHERE parent_id IS NULL AND deleted_at IS NULL;
CREATE INDEX jobs_by_actor ON callboard.jobs (actor, coalesce(parent_id, id));
CREATE INDEX jobs_failed ON callboard.jobs (failed_at)
    WHERE failed_at IS NOT NULL AND parent_id IS NULL AND deleted_at IS NULL;
CREATE INDEX jobs_failing ON callboard.jobs (id)
    WHERE failed_at IS NOT NULL AND parent_id IS NULL AND deleted_at IS NULL;
CREATE INDEX jobs_by_moves ON callboard.jobs (id, moves);
CREATE INDEX jobs_by_time ON callboard.jobs (created_at) WHERE parent_id IS NULL;
CREATE INDEX jobs_by_end ON callboard.jobs (state, id) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_of_sends ON callboard.jobs (id) WHERE standing_on IS NOT NULL;
CREATE INDEX jobs_open ON callboard.jobs (id) WHERE finished_at IS NULL;
CREATE INDEX jobs_staged ON callboard.jobs (id) WHERE stages IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_control ON callboard.jobs (control_at) WHERE control_at IS NOT NULL;
CREATE INDEX jobs_deadline ON callboard.jobs (deadline) WHERE deadline IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_unsealed ON callboard.jobs (id)
    WHERE NOT sealed AND finished_at IS NULL AND stages IS NULL AND coalesce(stage, 0) = 0;
CREATE INDEX jobs_to_make ON callboard.jobs (actor, id) WHERE to_make AND NOT sealed AND finished_at IS NULL;
CREATE INDEX jobs_stopping ON callboard.jobs (id) WHERE stopping IS NOT NULL AND finished_at IS NULL;
CREATE INDEX jobs_ended ON callboard.jobs (finished_at)
    WHERE keep IS NULL AND deleted_at IS NULL AND finished_at IS NOT NULL AND parent_id IS NULL;

-- `updated_at` moves forward, also if a transaction that began early is the last to lock the row. Only the sweep moves it
-- back, after the clock was set back.
CREATE FUNCTION callboard.advance_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    RETURN NEW;
END $$;

CREATE TRIGGER advance_updated_at BEFORE UPDATE OF updated_at ON callboard.jobs FOR EACH ROW
    WHEN (NEW.updated_at = now()) EXECUTE FUNCTION callboard.advance_updated_at();

-- What a flush (`record`) does to the counters and the state of a job; gives the row as it then is, or none.
-- While an old snapshot is held, each flush leaves a version of the row, and whoever looks by the id passes them all, in the
-- order of their pages. An index that knows how often the row has moved has the newest last, with those of its page. The
-- update finds that by its place. A function, since each of its statements sees what was committed before it began: a single
-- one may lack the version that it waited for, and would have to look again. Of a table of a page PostgreSQL would keep the
-- plan that reads it whole; and it may sort what the smaller index of the ids gives.
-- A row that others have moved away and back to the page of its last flush has not moved for the next ones: these pass the
-- versions of the others until that page is full.
CREATE FUNCTION callboard.count_outcomes(
    job bigint, more_items bigint, more_retrying bigint, more_succeeded bigint, more_failed bigint, more_skipped bigint,
    more_retries bigint, more_crashes bigint, more_unkept bigint
) RETURNS SETOF callboard.jobs ROWS 1 LANGUAGE plpgsql
SET enable_seqscan = off SET enable_sort = off SET enable_incremental_sort = off AS $$ DECLARE
    l record;
BEGIN
    SELECT j.ctid AS place, (j.ctid::text::point)[0]::bigint AS page, n.*, j.finished_at IS NULL AS open,
           j.sealed AND j.stopping IS NULL AND n.succeeded + n.failed + n.skipped + j.cancelled = n.total AS ends,
           j.finished_at IS NULL AND j.stopping IS NULL AND more_failed > 0
           AND (n.failed > j.fail_count
                OR n.succeeded + n.failed >= j.fail_sample
                   AND n.failed > j.fail_share * (n.succeeded + n.failed)) AS fails
    INTO l
    FROM callboard.jobs AS j CROSS JOIN LATERAL (
        SELECT j.total + more_items AS total, j.succeeded + more_succeeded AS succeeded, j.failed + more_failed AS failed,
               j.skipped + more_skipped AS skipped
    ) AS n
    WHERE j.id >= job AND j.id <= job ORDER BY j.id DESC, j.moves DESC LIMIT 1 FOR NO KEY UPDATE OF j;
    RETURN QUERY UPDATE callboard.jobs AS j
    SET total = l.total,
        retrying = j.retrying + more_retrying,
        succeeded = l.succeeded,
        failed = l.failed,
        skipped = l.skipped,
        sealed = j.sealed OR coalesce(l.fails, false) AND j.standing_on IS NOT NULL,
        retries = j.retries + more_retries,
        crashes = j.crashes + more_crashes,
        unkept = j.unkept + more_unkept,
        page = l.page,
        moves = j.moves + (j.page <> l.page)::int,
        started_at = coalesce(j.started_at, now()),
        updated_at = now(),
        state = CASE
            WHEN NOT l.open THEN j.state
            WHEN l.ends AND l.fails THEN 'failed'
            WHEN l.ends THEN 'completed'
            WHEN j.state = 'pending' THEN 'running'
            ELSE j.state END,
        finished_at = CASE WHEN l.open AND l.ends THEN now() ELSE j.finished_at END,
        stopping = CASE WHEN l.fails AND NOT l.ends THEN 'failed' ELSE j.stopping END,
        reason = CASE WHEN l.fails
                      THEN l.failed || ' failed, ' || l.succeeded || ' succeeded, and max_failures is '
                           || (j.limits ->> 'max_failures')
                      ELSE j.reason END,
        epoch = j.epoch + coalesce(l.fails, false)::int,
        control_at = CASE WHEN l.fails THEN clock_timestamp() ELSE j.control_at END
    WHERE j.ctid = l.place
    RETURNING j.*;
END $$;

-- When a job that is kept for so many seconds after its end is to leave. Immutable: an interval of seconds is the same in
-- each time zone.
CREATE FUNCTION callboard.expiry(ended timestamptz, keep float8) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN keep < 1e10 THEN ended + make_interval(secs => keep) ELSE 'infinity' END
$$;

CREATE INDEX jobs_kept ON callboard.jobs (callboard.expiry(finished_at, keep))
    WHERE keep IS NOT NULL AND deleted_at IS NULL AND finished_at IS NOT NULL AND parent_id IS NULL;
CREATE INDEX jobs_deleted ON callboard.jobs (id) WHERE deleted_at IS NOT NULL;

-- Jobs of stages that have yet to follow a stage that began, ended, was stopped or opened again. Apart from the jobs: what
-- a flush does to a stage must not wait for the lock of its parent.
CREATE TABLE callboard.stage_changes (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    parent_id        bigint NOT NULL
);

CREATE INDEX stage_changes_by_parent ON callboard.stage_changes (parent_id);

CREATE FUNCTION callboard.note_stage_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO callboard.stage_changes (parent_id) VALUES (NEW.parent_id);
    RETURN NULL;
END $$;

CREATE TRIGGER note_stage_change AFTER UPDATE OF started_at, finished_at, stopping ON callboard.jobs FOR EACH ROW
    WHEN (NEW.parent_id IS NOT NULL
          AND ((OLD.started_at IS NULL) <> (NEW.started_at IS NULL) OR (OLD.finished_at IS NULL) <> (NEW.finished_at IS NULL)
               OR (OLD.stopping IS NULL) <> (NEW.stopping IS NULL)))
    EXECUTE FUNCTION callboard.note_stage_change();

-- 10,000,000 rows of one job are usual. No index on a column that changes, not even a partial one: each update of it
-- would not be heap-only.
CREATE TABLE callboard.items (
    job_id           bigint NOT NULL,
    sent_at          timestamptz,                -- when a plain send or a child was sent; NULL: a bulk item, published by the
                                                 -- watermark
    started_at       timestamptz,                -- of the last attempt that ended
    finished_at      timestamptz,
    item             integer NOT NULL CHECK (item >= 0),
    attempt          integer NOT NULL DEFAULT 1 CHECK (attempt >= 1),  -- the next, the running, or the last attempt
    state            callboard.item_state NOT NULL DEFAULT 'waiting',
    worker           integer,                    -- whose outcome was the last recorded
    lease            integer,                    -- of a send that waits: its process publishes it under this; see send_leases
    crashes          smallint,                   -- deaths of workers charged to it; NULL: none
    crashes_dropped  smallint,                   -- charged to it until it ended by itself; NULL: none
    message_uuid     uuid,                       -- the id of a send's message, as Dramatiq makes them,
    message_id       text,                       -- or one that is no UUID; a bulk item has "job_id-item"
    actor            text,                       -- NULL: the job's
    queue            text,                       -- NULL: the job's
    item_key         text,                       -- unique within the job
    args             bytea NOT NULL,             -- as the app's encoder wrote them: see sql/call_bytes.py
    options          bytea,                      -- the message's own options, likewise; NULL: none
    retry_options    bytea,                      -- of the last retry, until the item is final: for a copy sent later
    PRIMARY KEY (job_id, item),
    CONSTRAINT items_finished CHECK ((finished_at IS NOT NULL) = (state NOT IN ('waiting', 'retrying')))
) WITH (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05);  -- a page has room for the end of each of its items

-- The id of a message, if it is a UUID that is written in the usual way: then it reads the same again.
CREATE FUNCTION callboard.uuid_of(message_id text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN message_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN message_id::uuid END
$$;

CREATE UNIQUE INDEX items_by_key ON callboard.items (job_id, item_key) WHERE item_key IS NOT NULL;

-- What actors returned. Apart from items: a result in the row would cost it the heap-only update.
CREATE TABLE callboard.results (
    job_id           bigint NOT NULL,
    item             integer NOT NULL,
    value            text,                       -- JSON; text, since jsonb changes numbers and refuses NUL
    unkept           text,                       -- why the value is not kept
    PRIMARY KEY (job_id, item),
    CONSTRAINT results_kept CHECK ((value IS NULL) <> (unkept IS NULL))
);

-- Every attempt that did not simply succeed. Rows are added and never changed.
CREATE TABLE callboard.attempts (
    job_id           bigint NOT NULL,
    started_at       timestamptz,
    ended_at         timestamptz NOT NULL,
    item             integer NOT NULL,
    attempt          integer NOT NULL,
    worker           integer,
    traceback_size   integer NOT NULL DEFAULT 0, -- characters before it was cut
    kind             callboard.attempt_kind NOT NULL,
    retried          boolean NOT NULL,           -- another attempt was scheduled
    error_type       text NOT NULL,
    place            text NOT NULL DEFAULT '',   -- file, line and function that raised
    pattern          text NOT NULL,              -- of the group of errors that it counts in
    message          text NOT NULL,
    traceback        text NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, item, attempt)
);

-- One row per kind of error: its type, the place that raised it, and the pattern of its message. Bounded: beyond a number
-- of groups, messages of further patterns share the row with the empty pattern (see `record`).
CREATE TABLE callboard.errors (
    job_id           bigint NOT NULL,
    count            bigint NOT NULL,            -- attempts
    failed           bigint NOT NULL,            -- of them, those that ended their item
    first_at         timestamptz NOT NULL,
    last_at          timestamptz NOT NULL,
    item             integer NOT NULL,           -- the example's: one that failed for good, where there is one
    kind             callboard.attempt_kind NOT NULL,
    error_type       text NOT NULL,
    place            text NOT NULL,
    pattern          text NOT NULL,
    message          text NOT NULL,              -- the example's
    PRIMARY KEY (job_id, kind, error_type, place, pattern)
) WITH (fillfactor = 70);

-- Attempts that have run for a while. Small: never more rows than there are worker threads.
CREATE TABLE callboard.running (
    job_id           bigint NOT NULL,
    started_at       timestamptz NOT NULL,
    progress_done    float8,                     -- what its actor last said; NULL: it said nothing
    progress_total   float8,                     -- likewise; NULL: nobody knows
    item             integer NOT NULL,
    attempt          integer NOT NULL,
    worker           integer NOT NULL,
    crash_limit      integer,                    -- of a dead worker that died with it: crashes after which it fails; 0: another is to blame
    step             text,                       -- what its actor last said it is doing
    stack            text,                       -- where it has stood for long: the innermost frames, the innermost first
    place            text,                       -- of these frames, the innermost that is neither a library's nor Python's
    PRIMARY KEY (job_id, item)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX running_by_worker ON callboard.running (worker);

-- Claims of processes on the plain sends that they have stored and publish at once, of a job each. Of an item whose lease is
-- here nobody knows whether it is published yet. It has no row in the outbox, and counts as published.
CREATE TABLE callboard.send_leases (
    id               integer GENERATED ALWAYS AS IDENTITY (CYCLE) PRIMARY KEY,
    first_item       integer NOT NULL,           -- of its job; its own items have this number or a higher one
    job_id           bigint NOT NULL,
    ends_at          timestamptz NOT NULL        -- past: its process vanished
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- What is to be published and has no place in a job's bulk range: children, retries, orphans, delays, and plain sends that
-- wait for their time, for their job's turn, or for the broker.
CREATE TABLE callboard.outbox (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id           bigint NOT NULL,
    due_at           timestamptz NOT NULL,       -- infinity: in its job's turn; year 9999: once a worker has its actor
    claimed_until    timestamptz,                -- past: its publisher vanished, so it may have been published
    sent_ms          bigint,                     -- message_timestamp to keep; NULL: the time of publishing
    item             integer NOT NULL,
    attempt          integer NOT NULL,
    first            boolean NOT NULL,           -- the item was never published before
    suspect          boolean NOT NULL DEFAULT false,  -- the message may be a second copy
    dead             boolean NOT NULL DEFAULT false,  -- for the dead letters: its item is failed, and no message is left
    in_turn          boolean NOT NULL DEFAULT false,  -- published in its job's turn and as there is room: due at infinity
    -- It was published, has not run, and waits here all the same: it was lost, or came to a worker without its actor. It
    -- doesn't count against its job's limits.
    resend           boolean NOT NULL DEFAULT false,
    options          bytea,                      -- the message's options from now on; NULL: the item's own
    queue            text COLLATE "C" NOT NULL DEFAULT '',  -- its item's; '': its job's
    lane             text,                       -- NULL: not known yet, or its job has no lanes
    awaits           text,                       -- of one due in the year 9999: its actor
    UNIQUE (job_id, item)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- What is due of a job is read without what is not, and without what a publisher has in hand.
CREATE INDEX outbox_waiting ON callboard.outbox (job_id, queue, due_at, item) WHERE claimed_until IS NULL;
CREATE INDEX outbox_claimed ON callboard.outbox (job_id, queue, claimed_until) WHERE claimed_until IS NOT NULL;
CREATE INDEX outbox_dead ON callboard.outbox (due_at) WHERE dead;
CREATE INDEX outbox_postponed ON callboard.outbox (job_id, item) WHERE due_at = timestamptz '9999-01-01Z';
CREATE INDEX outbox_awaiting ON callboard.outbox (awaits, id) WHERE due_at = timestamptz '9999-01-01Z';
CREATE INDEX outbox_by_lane ON callboard.outbox (job_id, lane, item) WHERE lane IS NOT NULL;
CREATE INDEX outbox_unlaned ON callboard.outbox (job_id) WHERE in_turn AND lane IS NULL;
-- They are few, but all retries of a job may lie beside them.
CREATE INDEX outbox_resend ON callboard.outbox (job_id) WHERE resend;

-- Whose turn it is to be published: a narrow row per queue of each open job that has had something to publish. Publishers
-- find by it what is due, and read neither the jobs nor the messages that wait for their time. It is never too late: what
-- adds to a job, or lets it go on, sets the time to now, and a publisher that found nothing sets it to what is next.
CREATE TABLE callboard.turns (
    job_id           bigint NOT NULL,
    bulk_at          timestamptz NOT NULL DEFAULT 'infinity',  -- when its bulk items and messages `in_turn` are looked at
    due_at           timestamptz NOT NULL DEFAULT 'infinity',  -- no other message of it is due before
    served_at        timestamptz,                -- when a publisher last took a batch
    not_before       timestamptz,                -- of its job, as are the next six
    deadline         timestamptz,
    seq              bigint NOT NULL DEFAULT 0,  -- raised by each change: what was found before it may not be all
    -- Raised when published messages come back, parked or without their actor: they are published again, behind others.
    given_back       bigint NOT NULL DEFAULT 0,
    priority         integer NOT NULL,
    limited          boolean NOT NULL,           -- by concurrency, rate or lanes: all of it is published in its job's turn
    held             boolean NOT NULL,           -- paused, or being stopped
    over             boolean NOT NULL,           -- ended: its messages are to be dropped
    tenant           text COLLATE "C" NOT NULL,
    queue            text COLLATE "C" NOT NULL,  -- as in the outbox; '': of bulk items, too
    target           text COLLATE "C" NOT NULL,  -- the name of the queue
    PRIMARY KEY (job_id, queue)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX turns_next ON callboard.turns (least(bulk_at, due_at)) WHERE NOT held AND NOT over;
CREATE INDEX turns_due ON callboard.turns (due_at) WHERE NOT held AND NOT over AND NOT limited;
CREATE INDEX turns_of_tenants ON callboard.turns (tenant, priority, served_at NULLS FIRST, job_id, queue)
    WHERE NOT held AND NOT over AND (bulk_at < 'infinity' OR limited);
CREATE INDEX turns_over ON callboard.turns (job_id) WHERE over;

-- The planner learns of tables that have grown far beyond their statistics: of this one, or of all (NULL). On a table of a
-- page or two it reads all of it, and keeps that plan for a prepared statement: when a million items come, each flush would
-- read them all, until autovacuum looks, up to a minute later. ANALYZE also has every connection make its plans anew.
-- A few pages read whole do no harm; from there four times is no other plan, and seldom enough for ten million items.
-- It runs as the owner of the tables, whom alone PostgreSQL lets do so. Where somebody is at it, it waits for nobody: then the
-- statistics come from there.
CREATE FUNCTION callboard.analyze_grown(only_table regclass) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ DECLARE
    grown record;
BEGIN
    FOR grown IN
        SELECT c.relname AS name FROM pg_class AS c
        WHERE c.relnamespace = 'callboard'::regnamespace AND c.relkind = 'r' AND c.oid = coalesce(only_table, c.oid)
          AND pg_has_role(c.relowner, 'USAGE')
          AND pg_relation_size(c.oid) / current_setting('block_size')::int > 4 * greatest(c.relpages, 0) + 8
    LOOP
        EXECUTE format('ANALYZE (SKIP_LOCKED) callboard.%I', grown.name);
    END LOOP;
END $$;

-- The only code that adds turns, beside the next function: it runs after each statement that adds messages to the outbox.
-- After one that adds very many it has the planner learn of them before they can be seen: with the plan of a tiny table a
-- publisher would compare each message that it claims with all of them.
-- The first turn of a queue is added under a lock of its job: a change of the job that is under way does not find
-- that turn yet, and would leave it, say, held for good.
CREATE FUNCTION callboard.add_turns() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM added) THEN
        PERFORM FROM callboard.jobs AS j
        WHERE TG_OP = 'INSERT' AND j.id IN (
            SELECT a.job_id FROM (SELECT DISTINCT job_id, queue FROM added) AS a
            WHERE NOT EXISTS (
                SELECT FROM callboard.turns AS t WHERE t.job_id = a.job_id AND t.queue = a.queue OFFSET 0))
        ORDER BY j.id FOR SHARE;
        INSERT INTO callboard.turns AS t
            (job_id, queue, target, bulk_at, due_at, given_back, tenant, priority, not_before, deadline, limited, held, over)
        SELECT a.job_id, a.queue, coalesce(nullif(a.queue, ''), j.queue, ''), a.bulk_at, a.due_at, a.given_back,
               j.tenant, j.priority, j.not_before, j.deadline,
               j.concurrency IS NOT NULL OR j.rate IS NOT NULL OR j.lane_by IS NOT NULL,
               j.state = 'paused' OR j.stopping IS NOT NULL, j.finished_at IS NOT NULL
        FROM (
            SELECT job_id, queue, coalesce(min(now()) FILTER (WHERE due_at = 'infinity'), 'infinity') AS bulk_at,
                   coalesce(min(greatest(due_at, claimed_until)) FILTER (WHERE due_at < 'infinity'), 'infinity') AS due_at,
                   max((awaits IS NOT NULL OR in_turn AND suspect)::int) AS given_back
            FROM added
            WHERE NOT dead AND (TG_OP = 'INSERT' OR claimed_until IS NULL OR claimed_until <= now())
            GROUP BY job_id, queue
        ) AS a JOIN callboard.jobs AS j ON j.id = a.job_id
        ORDER BY a.job_id, a.queue
        ON CONFLICT (job_id, queue) DO UPDATE
        SET bulk_at = least(t.bulk_at, excluded.bulk_at), due_at = least(t.due_at, excluded.due_at), seq = t.seq + 1,
            given_back = t.given_back + excluded.given_back;
        IF (SELECT pg_relation_size(c.oid) / current_setting('block_size')::int > 4 * greatest(c.relpages, 0) + 8
            FROM pg_catalog.pg_class AS c WHERE c.oid = TG_RELID)
        THEN
            PERFORM callboard.analyze_grown(TG_RELID);
        END IF;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER add_turns AFTER INSERT ON callboard.outbox REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION callboard.add_turns();
CREATE TRIGGER change_turns AFTER UPDATE ON callboard.outbox REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION callboard.add_turns();

-- A job has more bulk items, or is paused, stopped, limited, opened again, or over: its turns follow.
CREATE FUNCTION callboard.change_job_turns() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE
    is_limited boolean := NEW.concurrency IS NOT NULL OR NEW.rate IS NOT NULL OR NEW.lane_by IS NOT NULL;
    is_held boolean := NEW.state = 'paused' OR NEW.stopping IS NOT NULL;
BEGIN
    IF NEW.finished_at IS NULL AND NEW.watermark < NEW.bulk_end THEN
        INSERT INTO callboard.turns AS t
            (job_id, queue, target, bulk_at, tenant, priority, not_before, deadline, limited, held, over)
        VALUES (NEW.id, '', coalesce(NEW.queue, ''), now(), NEW.tenant, NEW.priority, NEW.not_before, NEW.deadline,
                is_limited, is_held, false)
        ON CONFLICT (job_id, queue) DO UPDATE SET bulk_at = least(t.bulk_at, now()), seq = t.seq + 1;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.bulk_end >= NEW.bulk_end THEN
        UPDATE callboard.turns AS t
        SET tenant = NEW.tenant, priority = NEW.priority, not_before = NEW.not_before, deadline = NEW.deadline,
            limited = is_limited, held = is_held, over = NEW.finished_at IS NOT NULL,
            bulk_at = least(t.bulk_at, now()), due_at = least(t.due_at, now()), seq = t.seq + 1
        FROM (  -- locked in the order in which the function above has them
            SELECT job_id, queue FROM callboard.turns WHERE job_id = NEW.id ORDER BY queue FOR NO KEY UPDATE
        ) AS l
        WHERE t.job_id = l.job_id AND t.queue = l.queue;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER add_job_turns AFTER INSERT ON callboard.jobs FOR EACH ROW
    WHEN (NEW.watermark < NEW.bulk_end) EXECUTE FUNCTION callboard.change_job_turns();
CREATE TRIGGER change_job_turns
    AFTER UPDATE OF bulk_end, watermark, finished_at, stopping, state, priority, not_before, deadline, concurrency, rate,
                    lane_by, lane_width, lanes ON callboard.jobs FOR EACH ROW
    WHEN (OLD.bulk_end < NEW.bulk_end OR NEW.watermark < OLD.watermark
          OR (OLD.finished_at IS NULL) <> (NEW.finished_at IS NULL) OR (OLD.stopping IS NULL) <> (NEW.stopping IS NULL)
          OR (OLD.state = 'paused') <> (NEW.state = 'paused')
          OR (OLD.priority, OLD.not_before, OLD.deadline, OLD.concurrency, OLD.rate, OLD.lane_by, OLD.lane_width,
           OLD.lanes)
             IS DISTINCT FROM (NEW.priority, NEW.not_before, NEW.deadline, NEW.concurrency, NEW.rate, NEW.lane_by,
                               NEW.lane_width, NEW.lanes))
    EXECUTE FUNCTION callboard.change_job_turns();

-- What is in flight of each lane, from before it is published until after it ended. A lane: the items of a job with the
-- same value of one of their arguments, of which only so many may be in flight.
CREATE TABLE callboard.lanes (
    job_id           bigint NOT NULL,
    item             integer NOT NULL,
    lane             text NOT NULL,
    PRIMARY KEY (job_id, item)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Worker processes.
CREATE TABLE callboard.workers (
    id               integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pid              integer NOT NULL,
    threads          integer NOT NULL,
    held             integer NOT NULL DEFAULT 0, -- items running or prefetched
    started_at       timestamptz NOT NULL DEFAULT now(),
    beat_at          timestamptz NOT NULL DEFAULT now(),
    session_since    timestamptz,                -- when the database session of its last beat began,
    session          integer,                    -- and its process id at the server; NULL: it goes through a pooler
    stopped_at       timestamptz,                -- it stopped in order
    died_at          timestamptz,                -- it was found dead
    host             text NOT NULL,
    release          text NOT NULL DEFAULT '',
    broker           text,                       -- its RabbitMQ cluster and virtual host; NULL: not known
    trouble          text,                       -- what keeps it from publishing, as of its last beat; NULL: nothing
    actors           text[] NOT NULL,
    queues           text[] NOT NULL,
    held_jobs        bigint[] NOT NULL DEFAULT '{}',  -- what it held at its last beat: the jobs of its items,
    held_items       integer[] NOT NULL DEFAULT '{}'  -- and their numbers, in the same order
) WITH (fillfactor = 50);

CREATE INDEX workers_alive ON callboard.workers (id) WHERE stopped_at IS NULL AND died_at IS NULL;
CREATE INDEX workers_ended ON callboard.workers (coalesce(stopped_at, died_at))
    WHERE coalesce(stopped_at, died_at) IS NOT NULL;

-- The workers that live: they have beaten within so many seconds. The planner replaces a call by its text.
CREATE FUNCTION callboard.live_workers(dead_after float8) RETURNS SETOF callboard.workers LANGUAGE sql STABLE AS $$
    SELECT * FROM callboard.workers
    WHERE stopped_at IS NULL AND died_at IS NULL AND beat_at > now() - make_interval(secs => dead_after)
$$;

-- Every actor that any worker ever announced: the web app and the command line need not import users' code.
CREATE TABLE callboard.actors (
    name             text PRIMARY KEY,
    queue            text NOT NULL,
    signature        jsonb,                      -- the arguments it takes: {"positional": […], …}; NULL: nobody knows
    mean_seconds     float8                      -- of its last attempts; NULL: too few have ended
);

-- A point every few seconds of each job that moves: rate, estimate and chart.
CREATE TABLE callboard.samples (
    job_id           bigint NOT NULL,
    taken_at         timestamptz NOT NULL DEFAULT now(),
    final            bigint NOT NULL,            -- items that ended, of the counters of the job
    failed           bigint NOT NULL,
    in_part          float8 NOT NULL DEFAULT 0,  -- items that the parts make up which were done of those in flight
    PRIMARY KEY (job_id, taken_at)
);

-- Every callback that the end of a job queued (see the trigger below).
CREATE TABLE callboard.callbacks (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),  -- receivers recognise repetitions by it
    job_id           bigint NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    ended_at         timestamptz NOT NULL,       -- when its job ended: one that is opened again ends again
    due_at           timestamptz NOT NULL DEFAULT now(),
    claimed_until    timestamptz,                -- past: its process vanished, so it may have been delivered
    delivered_at     timestamptz,
    gave_up_at       timestamptz,
    tries            integer NOT NULL DEFAULT 0,
    state            callboard.job_state NOT NULL,  -- what its job ended as
    url              text,                       -- of a webhook
    host             text COLLATE "C",           -- likewise: a process limits its webhooks to one host
    actor            text,                       -- or of a message
    queue            text,                       -- likewise
    tenant           text COLLATE "C" NOT NULL DEFAULT '',  -- of its job
    error            text,                       -- of the last try
    job              jsonb NOT NULL,             -- the job's row when it ended; of a parent with its stages' in `within`
    CONSTRAINT callbacks_target CHECK (
        (url IS NULL) <> (actor IS NULL) AND (url IS NULL) = (host IS NULL) AND (actor IS NULL) = (queue IS NULL)),
    CONSTRAINT callbacks_end CHECK (delivered_at IS NULL OR gave_up_at IS NULL)
) WITH (fillfactor = 70);

-- By host, '' for messages, and tenant: these have turns, and what waits for a host that has its share is not read.
CREATE INDEX callbacks_due ON callboard.callbacks (coalesce(host, ''), tenant, due_at)
    WHERE delivered_at IS NULL AND gave_up_at IS NULL;
CREATE INDEX callbacks_next ON callboard.callbacks (greatest(due_at, claimed_until))
    WHERE delivered_at IS NULL AND gave_up_at IS NULL;
CREATE INDEX callbacks_by_job ON callboard.callbacks (job_id);

-- The only code that queues callbacks: whichever statement ends a job, they are queued in its transaction. So none is
-- lost, none is queued twice, and a job that was opened again and ends again calls again.
CREATE FUNCTION callboard.queue_callbacks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO callboard.callbacks (job_id, ended_at, state, url, host, actor, queue, tenant, job)
    SELECT NEW.id, NEW.finished_at, NEW.state, t ->> 'url', t ->> 'host', t ->> 'actor', t ->> 'queue', NEW.tenant,
           to_jsonb(NEW) - '{callbacks,asked,digest}'::text[] || jsonb_build_object('within', (
               SELECT jsonb_agg(to_jsonb(s) ORDER BY s.stage) FROM callboard.jobs AS s WHERE s.parent_id = NEW.id))
    FROM jsonb_array_elements(NEW.callbacks -> NEW.state::text) AS t;
    RETURN NULL;
END $$;

CREATE TRIGGER queue_callbacks AFTER UPDATE OF finished_at ON callboard.jobs FOR EACH ROW
    WHEN (OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL AND NEW.callbacks IS NOT NULL)
    EXECUTE FUNCTION callboard.queue_callbacks();

-- Who did what to a job.
CREATE TABLE callboard.actions (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id           bigint NOT NULL,
    done_at          timestamptz NOT NULL DEFAULT now(),
    action           text NOT NULL,
    who              text NOT NULL DEFAULT '',   -- as far as it is known
    via              text NOT NULL,              -- by which way: cli, http, python, worker
    address          text,                       -- of the client that asked over HTTP
    detail           jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(detail) = 'object')
);

CREATE INDEX actions_by_job ON callboard.actions (job_id, id);

-- What lets somebody in. A secret is 256 random bits, of which only the SHA-256 is kept: what somebody reads here opens
-- nothing. One that was revoked, used up, or whose time is over is as good as gone; the sweep deletes it.
CREATE TABLE callboard.tokens (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    opened_by        bigint,                     -- of a session: what it was opened with, which takes it along when revoked
    job_id           bigint,                     -- of a share token: all that it lets one read
    created_at       timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz,                -- NULL: never
    used_at          timestamptz,                -- its last use, to the minute
    revoked_at       timestamptz,                -- or when a link was used, which works once
    kind             text NOT NULL CHECK (kind IN ('api', 'link', 'session', 'share')),
    digest           bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    name             text NOT NULL CHECK (name <> ''),  -- of whom it lets in, as the history of jobs has it
    tenant           text CHECK (tenant <> ''),  -- the only one whose jobs it is for; NULL: all
    scopes           text[] NOT NULL,
    created_by       text NOT NULL DEFAULT '',
    CONSTRAINT tokens_share CHECK ((kind = 'share') = (job_id IS NOT NULL)),
    CONSTRAINT tokens_session CHECK ((kind = 'session') = (opened_by IS NOT NULL))
);

CREATE INDEX tokens_ending ON callboard.tokens (least(revoked_at, expires_at))
    WHERE least(revoked_at, expires_at) IS NOT NULL;
CREATE INDEX tokens_by_job ON callboard.tokens (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX tokens_by_opener ON callboard.tokens (opened_by) WHERE opened_by IS NOT NULL;

-- Which process does what only one may do, and until when.
CREATE TABLE callboard.leases (
    name             text PRIMARY KEY,           -- sweep
    holder           text NOT NULL,
    until            timestamptz NOT NULL
);

-- What the jobs that are over amount to, so that nobody has to read them: how many there are, and the sums of their
-- counters. A job that left is no job any more, and its items stay counted, as do those that were given another attempt
-- (then without a state): the sums of these and of the open jobs never fall. Rows are only added, for nobody is to wait for
-- another here; some take away. The sweep makes one of those of an actor, queue and state.
CREATE TABLE callboard.totals (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    jobs             bigint NOT NULL DEFAULT 0,  -- stages are none
    succeeded        bigint NOT NULL,
    failed           bigint NOT NULL,
    skipped          bigint NOT NULL,
    retries          bigint NOT NULL,
    crashes          bigint NOT NULL,
    state            callboard.job_state,
    actor            text NOT NULL,              -- '': of jobs without one of their own
    queue            text NOT NULL               -- likewise
);

-- The only code that counts a job: whichever statement ends it, opens it again, marks it as deleted, or moves a counter of
-- it once it is over.
CREATE FUNCTION callboard.count_ended_job() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO callboard.totals (jobs, succeeded, failed, skipped, retries, crashes, state, actor, queue)
    SELECT CASE WHEN j.parent_id IS NULL AND j.deleted_at IS NULL THEN n ELSE 0 END,
           n * j.succeeded, n * j.failed, n * j.skipped, n * j.retries, n * j.crashes,
           j.state, coalesce(j.actor, ''), coalesce(j.queue, '')
    FROM (SELECT OLD.*, -1 AS n UNION ALL SELECT NEW.*, 1) AS j WHERE j.finished_at IS NOT NULL;
    RETURN NULL;
END $$;

CREATE TRIGGER count_ended_job
    AFTER UPDATE OF finished_at, deleted_at, succeeded, failed, skipped, retries, crashes ON callboard.jobs FOR EACH ROW
    WHEN ((OLD.finished_at IS NOT NULL OR NEW.finished_at IS NOT NULL)
          AND ((OLD.finished_at IS NULL) <> (NEW.finished_at IS NULL) OR (OLD.deleted_at IS NULL) <> (NEW.deleted_at IS NULL)
               OR (OLD.succeeded, OLD.failed, OLD.skipped, OLD.retries, OLD.crashes)
                  <> (NEW.succeeded, NEW.failed, NEW.skipped, NEW.retries, NEW.crashes)))
    EXECUTE FUNCTION callboard.count_ended_job();

-- Jobs that were deleted while messages of theirs may still have been in RabbitMQ: a worker must not run those.
CREATE TABLE callboard.deleted_jobs (
    id               bigint PRIMARY KEY,         -- the job's
    epoch            integer NOT NULL,
    deleted_at       timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX deleted_jobs_by_time ON callboard.deleted_jobs (deleted_at);
