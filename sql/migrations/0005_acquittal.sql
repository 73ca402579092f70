-- Deaths of workers that an item was charged with until it ended by itself.

ALTER TABLE callboard.items
    ADD COLUMN acquitted smallint;  -- so many; NULL: none
