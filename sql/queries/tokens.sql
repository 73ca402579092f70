-- name: add_token
-- A secret lets somebody in from now on. One for a job is of the job's tenant. Caller: tokens.create.
-- Rows: one, its row as token_columns has it.
INSERT INTO callboard.tokens (kind, digest, name, tenant, scopes, job_id, created_by, expires_at)
VALUES (%(kind)s, %(digest)s, %(name)s,
        coalesce(%(tenant)s, (SELECT nullif(j.tenant, '') FROM callboard.jobs AS j WHERE j.id = %(job)s)),
        %(scopes)s, %(job)s, %(by)s, now() + make_interval(secs => %(seconds)s::float8))
RETURNING {token_columns}

-- part: token_columns
-- The columns that describe a token.
id, kind, name, tenant, scopes, job_id AS job, created_at, created_by, expires_at, used_at

-- part: token_lives
-- Whether a token t lets anybody in. When it was revoked does not matter: that may be after this transaction began.
(t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()))

-- name: open_session
-- Somebody logs in: a session begins, which lasts no longer than what it is opened with. A link is used up by it.
-- Guard: the secret is of a link or of an API token, which lives, as locked: of two logins by one link the second finds none.
-- Caller: tokens.log_in. Rows: (id, name, seconds until it ends); none: the secret lets nobody in.
WITH opener AS (
    UPDATE callboard.tokens AS t
    SET used_at = now(), revoked_at = CASE WHEN t.kind = 'link' THEN now() ELSE t.revoked_at END
    WHERE t.digest = %(opener)s AND t.kind IN ('api', 'link') AND {token_lives}
    RETURNING t.*
)
INSERT INTO callboard.tokens (kind, opened_by, digest, name, tenant, scopes, created_by, expires_at)
SELECT 'session', id, %(digest)s, name, tenant, scopes, name,
       least(now() + make_interval(secs => %(seconds)s::float8), CASE WHEN kind = 'api' THEN expires_at END)
FROM opener
RETURNING id, name, extract(epoch FROM expires_at - now())::float8

-- name: revoke_token
-- A token lets nobody in any more. Guard: it lives, and is of this tenant (NULL: any). Caller: tokens.revoke.
-- Rows: (name, job), its own; none: there is no such token.
UPDATE callboard.tokens AS t SET revoked_at = now()
WHERE t.id = %(id)s AND (%(tenant)s::text IS NULL OR t.tenant = %(tenant)s) AND {token_lives}
RETURNING t.name, t.job_id

-- name: revoke_sessions
-- Likewise the sessions that were opened with a token. Caller: tokens.revoke, in its transaction: a statement of its own,
-- which sees the session of a login that held the token's lock. Lock order: a token before its sessions.
UPDATE callboard.tokens SET revoked_at = now() WHERE opened_by = %(id)s AND revoked_at IS NULL

-- name: end_session
-- Somebody logs out. Guard: it is a session. Caller: tokens.log_out.
UPDATE callboard.tokens SET revoked_at = now() WHERE digest = %(digest)s AND kind = 'session' AND revoked_at IS NULL

-- name: note_token_use
-- A token was used. Guard: that was not noted within the last minute. Caller: tokens.note_use.
UPDATE callboard.tokens SET used_at = now()
WHERE id = %(id)s AND (used_at IS NULL OR used_at < now() - interval '1 minute')
