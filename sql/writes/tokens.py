"""Tokens give programs and people access to the web app. A secret is shown once; the database stores its SHA-256.

A secret is 256 random bits, so it can't be guessed, and a slow hash would not make it safer. Kinds: `api`, sent with
requests or typed into the login page; `link`, which logs in once; `session`, the cookie of a browser that logged in;
`share`, which reads one job.
"""

import hashlib
import logging
import math
import secrets
from collections.abc import Collection
from typing import Any

from psycopg.rows import dict_row

from callboard.sql.json_values import iso
from callboard.sql.limits import parse_span
from callboard.sql.pool import Conn, transaction
from callboard.sql.statements import execute, statement
from callboard.sql.states import DEFAULT_SCOPES, SCOPES
from callboard.sql.writes.requests import Requester, check_text, job_status, note_action

log = logging.getLogger("callboard.tokens")

#: The prefix of a secret, by which people and secret scanners recognise it.
PREFIX = "cb_"
#: How long a link is valid, and the most seconds that a browser stays logged in.
LINK_LIFE = "1d"
SESSION_SECONDS = 30 * 86_400.0
#: The most characters of a name or a tenant.
MAX_CHARACTERS = 200


def digest(secret: str) -> bytes:
    """Return the digest of a secret, the only part of it that is stored."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def scopes_of(given: Collection[str] | None) -> list[str]:
    """Return the scopes of a token, in their order; None: the default. Raises ValueError for unknown ones, or none."""
    wanted = set(DEFAULT_SCOPES if given is None else given)
    if not wanted or not wanted <= set(SCOPES):
        raise ValueError(
            f"scopes must be one or more of {', '.join(SCOPES)}, not {', '.join(sorted(wanted)) or 'none'}"
        )
    return [scope for scope in SCOPES if scope in wanted]


def create(
    conn: Conn, by: Requester, *, name: str, kind: str = "api", scopes: Collection[str] | None = None,
    tenant: str | None = None, job: int | None = None, expires: str | None = None,
) -> tuple[str, dict[str, Any]]:  # fmt: skip
    """Create a token; return its secret and its row. `expires`: a span like "30d", or "forever"; None: one day for a
    link, else for ever. With a `job` its kind is `share`: it reads only that job, and the job's history records it.

    Raises ValueError for invalid arguments, and NoSuchJob.
    """
    if job is not None:
        kind, scopes = "share", ("read",)
    for what, text in (("name", name), ("tenant", tenant)):
        check_text(what, text, MAX_CHARACTERS)
        if text == "":
            raise ValueError(f"{what} must not be empty")
    life = parse_span("expires", expires or (LINK_LIFE if kind == "link" else "forever"))
    secret = PREFIX + secrets.token_urlsafe(32)
    row = {
        "kind": kind, "digest": digest(secret), "name": name, "tenant": tenant, "scopes": scopes_of(scopes), "job": job,
        "by": by.who, "seconds": None if math.isinf(life) else life,
    }  # fmt: skip
    with transaction(conn), conn.cursor(row_factory=dict_row) as cursor:
        if job is not None:
            job_status(conn, job, by)
        (found,) = cursor.execute(statement("add_token"), row).fetchall()
        made = {**found, **{at: iso(found[at]) for at in ("created_at", "expires_at", "used_at")}}
        if job is not None:
            note_action(conn, job, by, "share", {"token": made["id"], "expires_at": made["expires_at"]})
    log.info("token %d, %s of %r, is made by %r, %s", made["id"], kind, name, by.who or "somebody", by.via)
    return secret, made


def revoke(conn: Conn, number: int, by: Requester) -> bool:
    """Revoke a token, and the sessions that were opened with it; return whether there was a valid one."""
    with transaction(conn):
        row = execute(conn, "revoke_token", id=number, tenant=by.tenant).fetchone()
        if row is None:
            return False
        name, job = row
        execute(conn, "revoke_sessions", id=number)
        if job is not None:
            note_action(conn, job, by, "unshare", {"token": number})
    log.info("token %d of %r is revoked by %r, %s", number, name, by.who or "somebody", by.via)
    return True


def log_in(conn: Conn, secret: str) -> tuple[str, float] | None:
    """Open a session with the secret of a link or of an API token; return the session's secret and its seconds of
    validity, or None if the secret is not valid. A link works once.
    """
    session = PREFIX + secrets.token_urlsafe(32)
    row = execute(
        conn, "open_session", opener=digest(secret), digest=digest(session), seconds=SESSION_SECONDS
    ).fetchone()
    if row is None:
        return None
    log.info("session %d of %r begins", row[0], row[1])
    return session, row[2]


def log_out(conn: Conn, session: str) -> None:
    """End a session."""
    execute(conn, "end_session", digest=digest(session))


def note_use(conn: Conn, number: int) -> None:
    """Record the use of a token, to the minute."""
    execute(conn, "note_token_use", id=number)
