-- How many items of a job may be in flight for each value of one of their arguments: such items are one lane.

ALTER TABLE callboard.jobs
    ADD COLUMN lane_by      text,     -- the argument: a keyword, or the position of a positional one
    ADD COLUMN lane_width   integer,  -- items of a lane in RabbitMQ and in hand
    ADD COLUMN laned_by     text,     -- the argument that the lanes of its messages were told by
    ADD CHECK (lane_width > 0 AND (lane_by IS NULL) = (lane_width IS NULL));

ALTER TABLE callboard.outbox
    ADD COLUMN lane text;             -- NULL: not told yet, or its job has no lanes

CREATE INDEX outbox_by_lane ON callboard.outbox (job_id, lane, item) WHERE lane IS NOT NULL;
CREATE INDEX outbox_unlaned ON callboard.outbox (job_id) WHERE redo AND lane IS NULL;

-- What is in flight of each lane, from before it is published until after it ended.
CREATE TABLE callboard.lanes (
    job_id          bigint NOT NULL,
    item            integer NOT NULL,
    lane            text NOT NULL,
    PRIMARY KEY (job_id, item)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
