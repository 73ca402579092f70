-- How far an item in hand is, by what its actor said last; NULL: it said nothing.

ALTER TABLE callboard.running
    ADD COLUMN progress_done  float8,
    ADD COLUMN progress_total float8;  -- NULL: nobody knows
