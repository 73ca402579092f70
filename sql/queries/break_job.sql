-- break_job: a submission that can't be taken up again broke off. Transition: open -> failed, with the reason.
-- Guard: neither sealed nor stopped. Caller: submit.
UPDATE callboard.jobs SET state = 'failed', reason = %s, finished_at = now(), updated_at = now(), epoch = epoch + 1,
    told_at = clock_timestamp()
WHERE id = %s AND NOT sealed AND finished_at IS NULL AND stopping IS NULL
