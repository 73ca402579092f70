-- note_action: who did what to a job, in the transaction that does it. Caller: controls.
INSERT INTO callboard.actions (job_id, action, who, via, detail)
VALUES (%(job)s, %(action)s, %(who)s, %(via)s, %(detail)s::jsonb)
