-- note_migration: a migration was applied, in the transaction that applied it. Caller: migrate.
INSERT INTO callboard.migrations (number, name, breaking) VALUES (%s, %s, %s)
