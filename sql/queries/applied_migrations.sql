-- applied_migrations: every migration the database has had. Caller: migrate, and each process's check at its start.
SELECT number, name, breaking FROM callboard.migrations ORDER BY number
