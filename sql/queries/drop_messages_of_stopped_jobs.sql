-- drop_messages_of_stopped_jobs: what was to be published for jobs that are over never is. Caller: the sweep.
DELETE FROM callboard.outbox AS o USING callboard.jobs AS j WHERE j.id = o.job_id AND j.finished_at IS NOT NULL AND NOT o.dead
