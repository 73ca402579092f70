-- name: add_token
-- Add a token. A token for a job belongs to the job's tenant. Caller: tokens.create. Rows: one, its token_columns.
INSERT INTO callboard.tokens (kind, digest, name, tenant, scopes, job_id, created_by, expires_at)
VALUES (%(kind)s, %(digest)s, %(name)s,
        coalesce(%(tenant)s, (SELECT nullif(j.tenant, '') FROM callboard.jobs AS j WHERE j.id = %(job)s)),
        %(scopes)s, %(job)s, %(by)s, now() + make_interval(secs => %(seconds)s::float8))
RETURNING {token_columns}

-- part: token_columns
-- The columns that describe a token.
id, kind, name, tenant, scopes, job_id AS job, created_at, created_by, expires_at, used_at

-- part: token_lives
-- Whether a token t is valid. The time of its revocation is not compared: it may be after the start of this
-- transaction.
(t.revoked_at IS NULL AND (t.expires_at IS NULL OR t.expires_at > now()))

-- name: open_session
-- A login: open a session, which does not outlast the API token that opens it. A link becomes invalid.
-- Guard: the secret belongs to a valid link or API token, checked under its lock: of two logins by one link the second
-- finds none. Caller: tokens.log_in. Rows: (id, name, seconds until it ends); none: the secret is not valid.
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
-- Revoke a token. Guard: it is valid, and belongs to this tenant (NULL: any). Caller: tokens.revoke.
-- Rows: (name, job) of the token; none: there is no such token.
UPDATE callboard.tokens AS t SET revoked_at = now()
WHERE t.id = %(id)s AND (%(tenant)s::text IS NULL OR t.tenant = %(tenant)s) AND {token_lives}
RETURNING t.name, t.job_id

-- name: revoke_sessions
-- Revoke the sessions that were opened with a token. Caller: tokens.revoke, in its transaction. A statement of its own, so
-- that it sees the session of a login that held the token's lock. Lock order: a token before its sessions.
UPDATE callboard.tokens SET revoked_at = now() WHERE opened_by = %(id)s AND revoked_at IS NULL

-- name: end_session
-- A logout: end a session. Guard: it is a session. Caller: tokens.log_out.
UPDATE callboard.tokens SET revoked_at = now() WHERE digest = %(digest)s AND kind = 'session' AND revoked_at IS NULL

-- name: note_token_use
-- Record the use of a token. Guard: its last recorded use is more than a minute ago. Caller: tokens.note_use.
UPDATE callboard.tokens SET used_at = now()
WHERE id = %(id)s AND (used_at IS NULL OR used_at < now() - interval '1 minute')
