-- All tables of Callboard: jobs and their items, then attempts and errors, then publishing, workers and the rest.
-- Every name is qualified: a pooler in transaction mode keeps no search_path. No table has a foreign key: one on `items`
-- halves the speed of COPY. In tables of many rows the widest columns of fixed width come first, so that no padding is lost.

CREATE TYPE callboard.job_state AS ENUM (
    'pending',    -- no item has started
    'running',    -- at least one item has started
    'paused',     -- nothing new starts until it is resumed
    'completed',  -- final: sealed, and every item is final, whatever the mix
    'failed',     -- final: stopped, because it exceeded its failure limit, or its submission broke off
    'cancelled'   -- final: stopped by a user, or by its deadline
);

CREATE TYPE callboard.item_state AS ENUM (
    'waiting',    -- neither final nor waiting for a retry: pending, queued or running, as derived from the job's row
    'retrying',   -- an attempt failed, and the next one is scheduled
    'succeeded',  -- final: the actor returned
    'failed',     -- final: its last attempt failed
    'skipped',    -- final: the actor raised Skip
    'cancelled'   -- final: its job was stopped and goes on without it; items of a job that stays stopped keep their state
);

CREATE TYPE callboard.attempt_kind AS ENUM (
    'failed',     -- the actor raised
    'timed_out',  -- it exceeded its time limit, or the message its age limit
    'crashed',    -- its worker died while it held the item
    'skipped',    -- the actor raised Skip
    'postponed'   -- the actor raised Postpone: no failure, and another attempt is scheduled
);

-- Conditions on single columns of `jobs`, which has many updates, are in domains: PostgreSQL checks a domain only when the
-- column gets a value, but each CHECK of a table in each update of a row.
CREATE DOMAIN callboard.filled_text AS text CHECK (VALUE <> '');
CREATE DOMAIN callboard.json_object AS jsonb CHECK (jsonb_typeof(VALUE) = 'object');
CREATE DOMAIN callboard.whole_from_0 AS bigint CHECK (VALUE >= 0);
CREATE DOMAIN callboard.whole_from_1 AS bigint CHECK (VALUE >= 1);
CREATE DOMAIN callboard.above_0 AS float8 CHECK (VALUE > 0);
CREATE DOMAIN callboard.share AS float8 CHECK (VALUE > 0 AND VALUE < 1);
CREATE DOMAIN callboard.after_failure AS text CHECK (VALUE IN ('stop', 'go on'));

-- Starting at the seconds since 2025 keeps the ids of a recreated database apart from those of the database before it,
-- whose messages RabbitMQ may still have.
CREATE SEQUENCE callboard.job_ids;
SELECT setval('callboard.job_ids', greatest(1, extract(epoch FROM now() - timestamptz '2025-01-01Z')::bigint));

-- A set of items; or a standing job: an actor's plain sends of one day; or a parent of stages; or one of its stages.
-- The counters are always exact: they move in the transaction that moves the items.
CREATE TABLE callboard.jobs (
    id               bigint PRIMARY KEY DEFAULT nextval('callboard.job_ids'),

    -- Its options.
    created_at       timestamptz NOT NULL DEFAULT now(),
    standing_on      date,                       -- the UTC day of a standing job; a sealed one may be followed by another
    chunk            callboard.whole_from_1,     -- bulk items that one message carries at most; NULL: the publisher chooses
    name             callboard.filled_text NOT NULL,
    key              text,                       -- the same key of the same tenant gives the same job
    tenant           text NOT NULL DEFAULT '',
    actor            text,                       -- of every item without its own
    queue            text,                       -- of every item without its own
    created_by       text,
    metadata         callboard.json_object NOT NULL DEFAULT '{}',
    trace            jsonb,                      -- the OpenTelemetry context of its submission; NULL: it is off
    -- Its callbacks by end state: {"completed": [{"url": …, "host": …}, {"actor": …, "queue": …}]}. NULL: none.
    callbacks        callboard.json_object,

    -- Its state.
    started_at       timestamptz,
    finished_at      timestamptz,
    updated_at       timestamptz NOT NULL DEFAULT now(),
    control_at       timestamptz,                -- when its control state last changed: workers read recent changes
    epoch            integer NOT NULL DEFAULT 0, -- raised by pause, resume, stop and retry; a message of an older one is suspect
    state            callboard.job_state NOT NULL DEFAULT 'pending',
    stopping         callboard.job_state,        -- its state after the last running item has ended; NULL: it goes on
    sealed           boolean NOT NULL DEFAULT false,  -- no more items come from outside
    -- When it ended, if it may be failing: it failed, or has failed items, or has stages, which may have them. NULL while it
    -- is open, so that counters of open jobs change no index.
    failed_at        timestamptz GENERATED ALWAYS AS (
        CASE WHEN failed > 0 OR state = 'failed' OR stages IS NOT NULL THEN finished_at END) STORED,
    reason           text,                       -- why it stopped
    step             text,                       -- the step that an item last reported

    -- Its counters, of items except `in_turn`, `retries` and `crashes`.
    total            bigint NOT NULL DEFAULT 0,  -- items stored
    published        bigint NOT NULL DEFAULT 0,  -- items published at least once
    retrying         bigint NOT NULL DEFAULT 0,
    succeeded        bigint NOT NULL DEFAULT 0,
    failed           bigint NOT NULL DEFAULT 0,
    skipped          bigint NOT NULL DEFAULT 0,
    cancelled        bigint NOT NULL DEFAULT 0,  -- items with that state
    in_turn          bigint NOT NULL DEFAULT 0,  -- rows of the outbox with `in_turn`
    retries          bigint NOT NULL DEFAULT 0,  -- failed attempts that were retried; without postponed ones
    crashes          bigint NOT NULL DEFAULT 0,  -- crashes of workers that are charged to its items
    unkept           bigint NOT NULL DEFAULT 0,  -- items that succeeded and whose result is not kept

    -- The page of its row at the last flush: see count_outcomes.
    page             bigint NOT NULL DEFAULT -1,
    moves            integer NOT NULL DEFAULT 0, -- how often the page changed between two flushes

    -- Its submission.
    consumed         bigint NOT NULL DEFAULT 0,  -- inputs read, including repeated item keys: where a submission continues
    digest           bytea NOT NULL DEFAULT '',  -- of these inputs, if it has a key: a repeated submission is compared by it
    asked            jsonb,                      -- digests of the options with which it was submitted, if it has a key
    submitting_until timestamptz,                -- past, and not sealed: its submitter has died; NULL: no submission, and it
                                                 -- is open for more items, if it is neither standing nor of stages
    held             boolean NOT NULL DEFAULT false,  -- none of its bulk items is published before all are stored

    -- Its publishing.
    bulk_end         bigint NOT NULL DEFAULT 0,  -- every bulk item is below it
    watermark        bigint NOT NULL DEFAULT 0,  -- every bulk item below it is published
    suspect_below    bigint NOT NULL DEFAULT 0,  -- a bulk item below it may have been published before
    publish_token    bigint NOT NULL DEFAULT 0,  -- fences a publisher whose claim was taken over
    publish_until    timestamptz,                -- the end of a publisher's claim; past: the claim was abandoned
    rate_ready       timestamptz,                -- the time up to which the starts that `rate` allows are used

    -- Its limits. `limits` has them as the user gave them. A parent's limits apply to its stages: its own columns are NULL,
    -- except `keep`.
    not_before       timestamptz,                -- its items are not published before
    deadline         timestamptz,                -- it is cancelled then
    fail_count       callboard.whole_from_0,     -- more failed items than this stop it
    fail_share       callboard.share,            -- or more than this share of the ended items,
    fail_sample      callboard.whole_from_1,     -- if at least so many have ended
    rate             callboard.above_0,          -- items published a second
    concurrency      callboard.whole_from_1,     -- the most items in RabbitMQ or running
    priority         integer NOT NULL DEFAULT 0, -- lower is served first
    lane_width       callboard.whole_from_1,     -- the most items of a lane in RabbitMQ or running: see the table `lanes`
    lane_by          text,                       -- the argument that decides an item's lane: a keyword, or a position
    lanes            callboard.whole_from_1,     -- the most lanes with items in RabbitMQ or running
    -- Lanes that are held back: {"lane": {"until": …, "reason": …}}; "*": the whole job, see also not_before.
    holds            callboard.json_object,
    applied_lane_by  text,                       -- the argument that decided the current lanes of its messages
    limits           callboard.json_object NOT NULL DEFAULT '{}',

    -- Its retention.
    keep             callboard.above_0,          -- seconds from its end to its deletion; infinity: never; NULL: the setting
    deleted_at       timestamptz,                -- when it was deleted: it is hidden, and its rows are being deleted
    deletion_after   timestamptz,                -- it could not be deleted, for `reason`: when it is tried again
    deleted_below    bigint NOT NULL DEFAULT 0,  -- of a deleted job: all item rows below this number are deleted

    -- Its stages: each is a job of its own, and they follow one another. Their parent has no items, and is never sealed while
    -- it is open.
    parent_id        bigint,                     -- of a stage: its parent
    stages           integer,                    -- of a parent: how many it has
    stage            integer,                    -- of a stage: its number, from 0
    to_make          boolean NOT NULL DEFAULT false,  -- of a stage: the one before was completed, so its items can be made
    maker            integer,                    -- of a stage: the worker that makes its items; void if it is dead
    makes            text,                       -- of a stage: the function that makes its items, "module:name"; NULL:
                                                 -- the results of the stage before are its items
    on_failure       callboard.after_failure,    -- of a stage: whether failed items stop the stages after it

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

-- A trigger names the columns that it reads, so that updates of other counters do not evaluate its condition.
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

-- `updated_at` only increases, even if a transaction that began early is the last to lock the row. Only the sweep decreases
-- it, after the clock was set back.
CREATE FUNCTION callboard.advance_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.updated_at := greatest(clock_timestamp(), OLD.updated_at + interval '1 microsecond');
    RETURN NEW;
END $$;

CREATE TRIGGER advance_updated_at BEFORE UPDATE OF updated_at ON callboard.jobs FOR EACH ROW
    WHEN (NEW.updated_at = now()) EXECUTE FUNCTION callboard.advance_updated_at();

-- Updates the counters and the state of a job in a flush (`record`); returns the new row, or none.
-- While an old snapshot is held, each flush leaves a dead version of the row, and a search by id reads all versions, in the
-- order of their pages. The index on `moves`, which counts page changes, has the newest version last, with the others of its
-- page; the UPDATE then finds it by its ctid. This is a function because each of its statements sees everything that was
-- committed before it began: a single statement may not see the version that it waited for, and would have to search again.
-- The SET clauses prevent a sequential scan, whose plan PostgreSQL would keep from a time when the table had one page, and a
-- sort of the rows of the smaller index on ids.
-- If other updates move a row to another page and back to the page of its last flush, `moves` does not count that: the next
-- flushes read the versions of these updates until that page is full.
CREATE FUNCTION callboard.count_outcomes(
    job bigint, more_items bigint, more_retrying bigint, more_succeeded bigint, more_failed bigint, more_skipped bigint,
    more_retries bigint, more_crashes bigint, more_unkept bigint, first_start timestamptz
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
        started_at = least(j.started_at, first_start),
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

-- When a job expires that is kept for `keep` seconds after its end. Immutable: an interval of seconds is the same in every
-- time zone.
CREATE FUNCTION callboard.expiry(ended timestamptz, keep float8) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN keep < 1e10 THEN ended + make_interval(secs => keep) ELSE 'infinity' END
$$;

CREATE INDEX jobs_kept ON callboard.jobs (callboard.expiry(finished_at, keep))
    WHERE keep IS NOT NULL AND deleted_at IS NULL AND finished_at IS NOT NULL AND parent_id IS NULL;
CREATE INDEX jobs_deleted ON callboard.jobs (id) WHERE deleted_at IS NOT NULL;

-- Parents whose state must be updated, because a stage began, ended, was stopped or was reopened. A table of its own, so
-- that a flush that updates a stage does not wait for the lock of the parent.
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

-- A job with 10,000,000 rows is usual. Columns that change have no index, not even a partial one: updates of them would not
-- be heap-only.
CREATE TABLE callboard.items (
    job_id           bigint NOT NULL,
    sent_at          timestamptz,                -- when a plain send or a child was sent; NULL: a bulk item, published by the
                                                 -- watermark
    started_at       timestamptz,                -- of the last attempt that ended
    finished_at      timestamptz,
    item             integer NOT NULL CHECK (item >= 0),
    attempt          integer NOT NULL DEFAULT 1 CHECK (attempt >= 1),  -- the next, the running, or the last attempt
    state            callboard.item_state NOT NULL DEFAULT 'waiting',
    worker           integer,                    -- whose outcome was recorded last
    lease            integer,                    -- of a waiting send: the lease under which its process publishes it
    crashes          smallint,                   -- crashes of workers that are charged to it; NULL: none
    message_uuid     uuid,                       -- the id of a send's message, if it is a UUID like Dramatiq's,
    message_id       text,                       -- or one that is no UUID; a bulk item has "job_id-item"
    actor            text,                       -- NULL: the job's
    queue            text,                       -- NULL: the job's
    item_key         text,                       -- unique within the job
    args             bytea NOT NULL,             -- from the app's encoder: see sql/call_bytes.py
    options          bytea,                      -- the message's own options, from the app's encoder; NULL: none
    retry_options    bytea,                      -- options of the last retry, for messages that are published again
    PRIMARY KEY (job_id, item),
    CONSTRAINT items_finished CHECK ((finished_at IS NOT NULL) = (state NOT IN ('waiting', 'retrying')))
) WITH (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.05);  -- a page has room for the end of each of its items

-- The id of a message as a UUID, if it is one in the canonical form, so that the text can be restored.
CREATE FUNCTION callboard.uuid_of(message_id text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN message_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN message_id::uuid END
$$;

CREATE UNIQUE INDEX items_by_key ON callboard.items (job_id, item_key) WHERE item_key IS NOT NULL;

-- The results of actors. A table of its own, because with a result in its row, an item's update would not be heap-only.
CREATE TABLE callboard.results (
    job_id           bigint NOT NULL,
    item             integer NOT NULL,
    value            text,                       -- JSON; as text, because jsonb changes numbers and refuses NUL
    unkept           text,                       -- why the value is not kept
    PRIMARY KEY (job_id, item),
    CONSTRAINT results_kept CHECK ((value IS NULL) <> (unkept IS NULL))
);

-- Every attempt that did not succeed. Rows are added and never changed.
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
    pattern          text NOT NULL,              -- the pattern of its group of errors
    message          text NOT NULL,
    traceback        text NOT NULL DEFAULT '',
    PRIMARY KEY (job_id, item, attempt)
);

-- One row per kind of error: its type, the place that raised it, and the pattern of its message. The number of rows of a job
-- is limited: messages with further patterns share the row with the empty pattern (see `record`).
CREATE TABLE callboard.errors (
    job_id           bigint NOT NULL,
    count            bigint NOT NULL,            -- attempts
    failed           bigint NOT NULL,            -- attempts among them that failed their item for good
    first_at         timestamptz NOT NULL,
    last_at          timestamptz NOT NULL,
    item             integer NOT NULL,           -- the example's: one that failed for good, if there is one
    kind             callboard.attempt_kind NOT NULL,
    error_type       text NOT NULL,
    place            text NOT NULL,
    pattern          text NOT NULL,
    message          text NOT NULL,              -- the example's
    PRIMARY KEY (job_id, kind, error_type, place, pattern)
) WITH (fillfactor = 70);

-- Attempts that have run for a while. Small: at most one row per worker thread.
CREATE TABLE callboard.running (
    job_id           bigint NOT NULL,
    started_at       timestamptz NOT NULL,
    progress_done    float8,                     -- the last reported progress; NULL: none
    progress_total   float8,                     -- the last reported total; NULL: unknown
    item             integer NOT NULL,
    attempt          integer NOT NULL,
    worker           integer NOT NULL,
    crash_limit      integer,                    -- after its worker's death: crashes at which it fails; 0: not charged to it
    step             text,                       -- the step that its actor last reported
    stack            text,                       -- where it hangs: the innermost frames, innermost first
    place            text,                       -- the innermost of these frames in the app's own code
    PRIMARY KEY (job_id, item)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX running_by_worker ON callboard.running (worker);

-- Leases under which processes publish the plain sends that they have stored; each belongs to one job. An item with a lease
-- in this table may be unpublished. It has no row in the outbox, and counts as published.
CREATE TABLE callboard.send_leases (
    id               integer GENERATED ALWAYS AS IDENTITY (CYCLE) PRIMARY KEY,
    first_item       integer NOT NULL,           -- its sends have this item number or a higher one
    job_id           bigint NOT NULL,
    ends_at          timestamptz NOT NULL        -- past: its process died
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

-- Messages to publish that are not in a job's bulk range: children, retries, requeued items of dead workers, delayed
-- messages, and plain sends that wait for their time, for their job's turn, or for the broker.
CREATE TABLE callboard.outbox (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id           bigint NOT NULL,
    due_at           timestamptz NOT NULL,       -- infinity: in its job's turn; year 9999: once a worker has its actor
    claimed_until    timestamptz,                -- past: its publisher died, so it may have been published
    sent_ms          bigint,                     -- the message's timestamp; NULL: the time of publishing
    item             integer NOT NULL,
    attempt          integer NOT NULL,
    first            boolean NOT NULL,           -- the item was never published before
    suspect          boolean NOT NULL DEFAULT false,  -- the message may be a duplicate
    dead             boolean NOT NULL DEFAULT false,  -- a dead letter: its item failed, and has no message to reject
    in_turn          boolean NOT NULL DEFAULT false,  -- published in its job's turn, when there is room: due at infinity
    -- It was published, has not run, and waits here again: it was lost, or reached a worker without its actor. It does not
    -- count for its job's limits.
    resend           boolean NOT NULL DEFAULT false,
    options          bytea,                      -- the message's new options; NULL: the item's own
    queue            text COLLATE "C" NOT NULL DEFAULT '',  -- its item's; '': its job's
    lane             text,                       -- NULL: not known yet, or its job has no lanes
    awaits           text,                       -- if due in the year 9999: the actor that it waits for
    UNIQUE (job_id, item)
) WITH (autovacuum_vacuum_scale_factor = 0.05);

-- Separate indexes, so that due messages of a job are read without those that are not due, and without claimed ones.
CREATE INDEX outbox_waiting ON callboard.outbox (job_id, queue, due_at, item) WHERE claimed_until IS NULL;
CREATE INDEX outbox_claimed ON callboard.outbox (job_id, queue, claimed_until) WHERE claimed_until IS NOT NULL;
CREATE INDEX outbox_dead ON callboard.outbox (due_at) WHERE dead;
CREATE INDEX outbox_postponed ON callboard.outbox (job_id, item) WHERE due_at = timestamptz '9999-01-01Z';
CREATE INDEX outbox_awaiting ON callboard.outbox (awaits, id) WHERE due_at = timestamptz '9999-01-01Z';
CREATE INDEX outbox_by_lane ON callboard.outbox (job_id, lane, item) WHERE lane IS NOT NULL;
CREATE INDEX outbox_unlaned ON callboard.outbox (job_id) WHERE in_turn AND lane IS NULL;
-- These rows are few, but a job may have many retries.
CREATE INDEX outbox_resend ON callboard.outbox (job_id) WHERE resend;

-- The turns of jobs to be published: a narrow row per queue of each open job that has had something to publish. By it
-- publishers find due work without reading jobs, or messages that wait for their time. Its times are never too late: what
-- adds to a job, or resumes it, sets the time to now, and a publisher that found nothing sets it to the next due time.
CREATE TABLE callboard.turns (
    job_id           bigint NOT NULL,
    bulk_at          timestamptz NOT NULL DEFAULT 'infinity',  -- when its bulk items and messages `in_turn` are due
    due_at           timestamptz NOT NULL DEFAULT 'infinity',  -- none of its other messages is due before
    served_at        timestamptz,                -- when a publisher last took a batch
    not_before       timestamptz,                -- copied from its job, like deadline, priority, limited, held, over, tenant
    deadline         timestamptz,
    seq              bigint NOT NULL DEFAULT 0,  -- raised by each change: a result read before may be incomplete
    -- Raised when published messages come back, parked or without their actor: they are published again, behind others.
    given_back       bigint NOT NULL DEFAULT 0,
    priority         integer NOT NULL,
    limited          boolean NOT NULL,           -- has concurrency, rate or lanes: all of it is published in its job's turn
    held             boolean NOT NULL,           -- paused, or being stopped
    over             boolean NOT NULL,           -- ended: its messages must be deleted
    tenant           text COLLATE "C" NOT NULL,
    queue            text COLLATE "C" NOT NULL,  -- as in the outbox; '': also of bulk items
    target           text COLLATE "C" NOT NULL,  -- the name of the queue
    PRIMARY KEY (job_id, queue)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE INDEX turns_next ON callboard.turns (least(bulk_at, due_at)) WHERE NOT held AND NOT over;
CREATE INDEX turns_due ON callboard.turns (due_at) WHERE NOT held AND NOT over AND NOT limited;
CREATE INDEX turns_of_tenants ON callboard.turns (tenant, priority, served_at NULLS FIRST, job_id, queue)
    WHERE NOT held AND NOT over AND (bulk_at < 'infinity' OR limited);
CREATE INDEX turns_over ON callboard.turns (job_id) WHERE over;

-- Analyzes one table, or those that have grown far beyond their statistics (NULL). The planner scans a table of one or
-- two pages sequentially, and keeps that plan for a prepared statement. When a million items are added, each flush would
-- read them all, until autovacuum runs, up to a minute later. ANALYZE also makes every connection plan again.
-- The threshold: a scan of a few pages is cheap; above that, growth by a factor of four rarely changes a plan, and is rare
-- enough for ten million items. The size does not show rows that fill the pages of deleted ones, nor rows that autovacuum did
-- not count because their transaction was open: the number of live rows does. A table that is taken for empty is read whole
-- even by its index.
-- It runs as the owner of the tables, because only the owner may analyze them. If another session is analyzing a table, it is
-- skipped.
CREATE FUNCTION callboard.analyze_grown(only_table regclass) RETURNS void LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$ DECLARE
    grown record;
BEGIN
    FOR grown IN
        SELECT c.relname AS name FROM pg_class AS c
        WHERE c.relnamespace = 'callboard'::regnamespace AND c.relkind = 'r' AND pg_has_role(c.relowner, 'USAGE')
          AND (c.oid = only_table
               OR only_table IS NULL
                  AND (pg_relation_size(c.oid) / current_setting('block_size')::int > 4 * greatest(c.relpages, 0) + 8
                       OR pg_stat_get_live_tuples(c.oid) > 4 * greatest(c.reltuples, 0) + 200))
    LOOP
        EXECUTE format('ANALYZE (SKIP_LOCKED) callboard.%I', grown.name);
    END LOOP;
END $$;

-- The only code that adds turns, besides the next function: it runs after each statement that adds messages to the outbox.
-- After a statement that adds very many, it analyzes the table before the messages are visible: with the plan for a tiny
-- table a publisher would compare each message that it claims with all others.
-- The first turn of a queue is added under a lock of its job: a concurrent change of the job would not see the new turn, and
-- could leave it held for ever, for example.
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
                   OR (SELECT count(*) FROM added) > 4 * greatest(c.reltuples, 0) + 200
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

-- Updates a job's turns when it gets more bulk items, or is paused, stopped, limited, reopened, or over.
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

-- The items in flight of each lane, from before their publishing until after their end. A lane: the items of a job with the
-- same value of one argument, of which only a limited number may be in flight.
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
    started_at       timestamptz NOT NULL DEFAULT now(),
    beat_at          timestamptz NOT NULL DEFAULT now(),
    session_since    timestamptz,                -- when the database session of its last heartbeat began,
    session          integer,                    -- and that session's pid; NULL: it connects through a pooler
    stopped_at       timestamptz,                -- when it stopped gracefully
    died_at          timestamptz,                -- when it was declared dead
    host             text NOT NULL,
    release          text NOT NULL DEFAULT '',
    broker           text,                       -- its RabbitMQ cluster and virtual host; NULL: not known
    trouble          text,                       -- why it can't publish, as of its last heartbeat; NULL: it can
    actors           text[] NOT NULL,
    queues           text[] NOT NULL,
    held_jobs        bigint[] NOT NULL DEFAULT '{}',  -- the jobs of the items that it held at its last heartbeat,
    held_items       integer[] NOT NULL DEFAULT '{}'  -- running or prefetched; and their numbers, in the same order
) WITH (fillfactor = 50);

CREATE INDEX workers_alive ON callboard.workers (id) WHERE stopped_at IS NULL AND died_at IS NULL;
CREATE INDEX workers_ended ON callboard.workers (coalesce(stopped_at, died_at))
    WHERE coalesce(stopped_at, died_at) IS NOT NULL;

-- The live workers: those with a heartbeat within `dead_after` seconds. The planner inlines a call.
CREATE FUNCTION callboard.live_workers(dead_after float8) RETURNS SETOF callboard.workers LANGUAGE sql STABLE AS $$
    SELECT * FROM callboard.workers
    WHERE stopped_at IS NULL AND died_at IS NULL AND beat_at > now() - make_interval(secs => dead_after)
$$;

-- Every actor that a worker ever announced: so the web app and the command line need not import users' code.
CREATE TABLE callboard.actors (
    name             text PRIMARY KEY,
    queue            text NOT NULL,
    signature        jsonb,                      -- the arguments it takes: {"positional": […], …}; NULL: not known
    mean_seconds     float8                      -- of its last attempts; NULL: too few have ended
);

-- Samples of each job that changes, every few seconds: for its rate, estimate and chart.
CREATE TABLE callboard.samples (
    job_id           bigint NOT NULL,
    taken_at         timestamptz NOT NULL DEFAULT now(),
    final            bigint NOT NULL,            -- ended items, from the job's counters
    failed           bigint NOT NULL,
    in_part          float8 NOT NULL DEFAULT 0,  -- the sum of the reported progress of items in flight, in items
    PRIMARY KEY (job_id, taken_at)
);

-- The callbacks of ended jobs; a trigger adds them (see below).
CREATE TABLE callboard.callbacks (
    id               uuid PRIMARY KEY DEFAULT gen_random_uuid(),  -- receivers recognise repetitions by it
    job_id           bigint NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    ended_at         timestamptz NOT NULL,       -- when its job ended; a reopened job ends again
    due_at           timestamptz NOT NULL DEFAULT now(),
    claimed_until    timestamptz,                -- past: its process died, so it may have been delivered
    delivered_at     timestamptz,
    gave_up_at       timestamptz,
    tries            integer NOT NULL DEFAULT 0,
    state            callboard.job_state NOT NULL,  -- the end state of its job
    url              text,                       -- of a webhook
    host             text COLLATE "C",           -- of a webhook: a process limits its webhooks per host
    actor            text,                       -- of a message
    queue            text,                       -- of a message
    tenant           text COLLATE "C" NOT NULL DEFAULT '',  -- of its job
    error            text,                       -- of the last try
    job              jsonb NOT NULL,             -- the job's row when it ended; of a parent, with its stages in `within`
    CONSTRAINT callbacks_target CHECK (
        (url IS NULL) <> (actor IS NULL) AND (url IS NULL) = (host IS NULL) AND (actor IS NULL) = (queue IS NULL)),
    CONSTRAINT callbacks_end CHECK (delivered_at IS NULL OR gave_up_at IS NULL)
) WITH (fillfactor = 70);

-- By host ('' for messages) and tenant, which are served in turn; callbacks of hosts at their limit are not read.
CREATE INDEX callbacks_due ON callboard.callbacks (coalesce(host, ''), tenant, due_at)
    WHERE delivered_at IS NULL AND gave_up_at IS NULL;
CREATE INDEX callbacks_next ON callboard.callbacks (greatest(due_at, claimed_until))
    WHERE delivered_at IS NULL AND gave_up_at IS NULL;
CREATE INDEX callbacks_by_job ON callboard.callbacks (job_id);

-- The only code that queues callbacks: they are queued in the transaction of the statement that ends the job. So none is
-- lost, none is queued twice, and a reopened job that ends again calls again.
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

-- The history of actions on jobs.
CREATE TABLE callboard.actions (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id           bigint NOT NULL,
    done_at          timestamptz NOT NULL DEFAULT now(),
    action           text NOT NULL,
    who              text NOT NULL DEFAULT '',   -- the name of the requester, if known
    via              text NOT NULL,              -- cli, http, python or worker
    address          text,                       -- of an HTTP client
    detail           jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(detail) = 'object')
);

CREATE INDEX actions_by_job ON callboard.actions (job_id, id);

-- Access tokens. A secret is 256 random bits, and only its SHA-256 is stored, so this table gives no access to its readers.
-- Revoked, used and expired tokens are invalid; the sweep deletes them.
CREATE TABLE callboard.tokens (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    opened_by        bigint,                     -- of a session: the token that opened it, and revokes it when revoked
    job_id           bigint,                     -- of a share token: the only job that it can read
    created_at       timestamptz NOT NULL DEFAULT now(),
    expires_at       timestamptz,                -- NULL: never
    used_at          timestamptz,                -- its last use, to the minute
    revoked_at       timestamptz,                -- of a link, also when it was used: it works once
    kind             text NOT NULL CHECK (kind IN ('api', 'link', 'session', 'share')),
    digest           bytea NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    name             text NOT NULL CHECK (name <> ''),  -- the name of its holder, which the history of jobs shows
    tenant           text CHECK (tenant <> ''),  -- the only tenant whose jobs it can access; NULL: all
    scopes           text[] NOT NULL,
    created_by       text NOT NULL DEFAULT '',
    CONSTRAINT tokens_share CHECK ((kind = 'share') = (job_id IS NOT NULL)),
    CONSTRAINT tokens_session CHECK ((kind = 'session') = (opened_by IS NOT NULL))
);

CREATE INDEX tokens_ending ON callboard.tokens (least(revoked_at, expires_at))
    WHERE least(revoked_at, expires_at) IS NOT NULL;
CREATE INDEX tokens_by_job ON callboard.tokens (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX tokens_by_opener ON callboard.tokens (opened_by) WHERE opened_by IS NOT NULL;

-- Leases of work that only one process may do at a time.
CREATE TABLE callboard.leases (
    name             text PRIMARY KEY,           -- sweep
    holder           text NOT NULL,
    until            timestamptz NOT NULL
);

-- Totals of ended jobs, so that these need not be read: their number, and the sums of their counters. Deleted jobs no longer
-- count as jobs, but their items stay counted, and so do retried items (in rows without a state): the sums of these totals
-- and of the open jobs never decrease. Rows are only inserted, so that no transaction waits for another; some have negative
-- numbers. The sweep merges the rows of an actor, queue and state.
CREATE TABLE callboard.totals (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    jobs             bigint NOT NULL DEFAULT 0,  -- without stages
    succeeded        bigint NOT NULL,
    failed           bigint NOT NULL,
    skipped          bigint NOT NULL,
    retries          bigint NOT NULL,
    crashes          bigint NOT NULL,
    state            callboard.job_state,
    actor            text NOT NULL,              -- '': of jobs without their own
    queue            text NOT NULL               -- '': of jobs without their own
);

-- The only code that counts a job in `totals`: after any statement that ends it, reopens it, marks it as deleted, or changes a
-- counter after its end.
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

-- Deleted jobs of which RabbitMQ may still have messages: a worker must not run these.
CREATE TABLE callboard.deleted_jobs (
    id               bigint PRIMARY KEY,         -- the job's
    epoch            integer NOT NULL,
    deleted_at       timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX deleted_jobs_by_time ON callboard.deleted_jobs (deleted_at);
