-- How many items of a job one message carries.

ALTER TABLE callboard.jobs
    ADD COLUMN chunk integer,  -- at most so many; NULL: one
    ADD CHECK (chunk > 1);
