"""The login of the app: tokens, the login page, sessions, shares of one job; each is tried with what it refuses."""

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from callboard import Identity
from callboard.sql.pool import Conn
from callboard.sql.reads import queries
from callboard.sql.writes import retention, tokens
from callboard.sql.writes.requests import Requester
from callboard.web import create_app, login, parameters
from tests.support.jobs import make_job
from tests.support.webapp import served
from tests.support.workers import wait_until

ANNA = Requester("cli", "anna")
BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}


@pytest.fixture
def address(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The closed app, which looks at each token anew."""
    monkeypatch.setattr(login, "KNOWN_SECONDS", 0.0)
    with served(create_app(url=database_url)) as url:
        yield url


def token(conn: Conn, name: str = "ci", **given: Any) -> str:
    return tokens.create(conn, ANNA, name=name, **given)[0]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@contextmanager
def browser(address: str) -> Iterator[httpx.Client]:
    """What keeps cookies and says what it is; redirects are left to the test."""
    with httpx.Client(base_url=address, headers=BROWSER) as client:
        yield client


def history(conn: Conn, job: int) -> list[tuple[str, str, str, str | None]]:
    return [
        (one["action"], one["who"], one["via"], one["address"]) for one in queries.run(conn, queries.actions(job))[0]
    ]


def test_a_token_opens_what_its_scopes_name(conn: Conn, address: str) -> None:
    job = make_job(conn, 1)
    secret = token(conn, "ci", scopes=["control"])
    paused = httpx.post(f"{address}/api/jobs/{job}/pause", headers=bearer(secret))
    assert paused.status_code == 200
    assert history(conn, job) == [("pause", "ci", "http", "127.0.0.1")]
    refused = httpx.get(f"{address}/api/jobs", headers=bearer(secret))
    assert (refused.status_code, "the scope read" in refused.text) == (403, True)
    assert httpx.get(f"{address}/api/tokens", headers=bearer(token(conn))).status_code == 403


def test_what_is_no_token_or_none_any_more_opens_nothing(conn: Conn, address: str) -> None:
    make_job(conn, 1)
    good = token(conn)
    revoked, row = tokens.create(conn, ANNA, name="revoked")
    tokens.revoke(conn, row["id"], ANNA)
    late = token(conn, "late", expires="1s")
    conn.execute("UPDATE callboard.tokens SET expires_at = now() - interval '1 s' WHERE name = 'late'")
    link = token(conn, kind="link")
    logged_in = tokens.log_in(conn, good)
    assert logged_in is not None
    session, name = logged_in[0], cookie(address)
    headers = [
        {}, {"Authorization": "Bearer"}, {"Authorization": good}, {"Authorization": f"Basic {good}"},
        *map(bearer, ("cb_", good[:-1], good + "x", good.upper(), "x" * 9000, revoked, late, link, session)),
        {"Cookie": f"callboard={session}"}, *({"Cookie": f"{name}={one}"} for one in (good, link, "forged")),
        {"X-Forwarded-User": "anna"},
    ]  # fmt: skip
    details = set()
    for given in headers:
        for path in ("/", "/api/jobs", "/jobs/1", "/api/v1/openapi.json", "/nowhere", f"/api/jobs?token={good}"):
            answer = httpx.get(f"{address}{path}", headers=given)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), (given, path)
            details.add((path.partition("?")[1], answer.json()["detail"]))
    assert len(details) == 2, "an expired or revoked token is told apart from none, in a header or in the address"
    assert httpx.get(f"{address}/api/jobs", headers=bearer(good)).status_code == 200
    # One that is bad is not made good by a cookie.
    mixed = {**bearer("cb_bad"), "Cookie": f"{name}={session}"}
    assert httpx.get(f"{address}/api/jobs", headers=mixed).status_code == 401


def cookie(address: str) -> str:
    return f"callboard_{address.rpartition(':')[2]}"


def test_a_token_that_is_revoked_ends_within_two_seconds(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert login.KNOWN_SECONDS == 2.0
    secret, row = tokens.create(conn, ANNA, name="ci")

    def status(address: str) -> int:
        return httpx.get(f"{address}/api/jobs", headers=bearer(secret)).status_code

    with monkeypatch.context() as longer, served(create_app(url=database_url)) as address:
        longer.setattr(login, "KNOWN_SECONDS", 300.0)
        assert status(address) == 200
        conn.execute("ALTER TABLE callboard.tokens RENAME TO gone")
        assert status(address) == 200, "a token that is known is looked for again"
        conn.execute("ALTER TABLE callboard.gone RENAME TO tokens")
    with served(create_app(url=database_url)) as address:
        assert status(address) == 200
        tokens.revoke(conn, row["id"], ANNA)
        assert wait_until(lambda: status(address) == 401, 300)


def test_the_last_use_is_noted_at_most_once_a_minute(conn: Conn, address: str) -> None:
    secret = token(conn)

    def used() -> Any:
        return conn.execute("SELECT used_at FROM callboard.tokens").fetchone()

    for _ in range(2):
        httpx.get(f"{address}/api/jobs", headers=bearer(secret))
        assert wait_until(lambda: used() != (None,), 300)
        first = used()
    assert used() == first
    conn.execute("UPDATE callboard.tokens SET used_at = now() - interval '61 s'")
    before = used()
    httpx.get(f"{address}/api/jobs", headers=bearer(secret))
    assert wait_until(lambda: used() != before, 300)


def test_a_browser_is_sent_to_the_login_and_back(conn: Conn, address: str) -> None:
    job = make_job(conn, 1)
    with browser(address) as client:
        sent = client.get(f"/jobs/{job}?state=failed")
        assert (sent.status_code, sent.headers["location"]) == (303, f"../login?next=jobs%2F{job}%3Fstate%3Dfailed")
        asked = client.get(f"/jobs/{sent.headers['location']}")
        assert asked.status_code == 200
        (wanted,) = re.findall(r'name="next" value="([^"]*)"', asked.text)
        opened = client.post("/login", data={"token": token(conn, "anna"), "next": wanted})
        assert (opened.status_code, opened.headers["location"]) == (303, f"./jobs/{job}?state=failed")
        made = opened.headers["set-cookie"]
        assert re.fullmatch(
            rf"{cookie(address)}=cb_[\w-]{{43}}; HttpOnly; Max-Age=25\d{{5}}; Path=/; SameSite=lax", made
        ), made
        assert client.get(f"/jobs/{job}").status_code == 200
        client.post(f"/api/jobs/{job}/pause")
        assert history(conn, job) == [("pause", "anna", "http", "127.0.0.1")]
        assert client.get("/login?next=jobs").headers["location"] == "./jobs"
        # A program that asks for the same page is told what to send.
        assert httpx.get(f"{address}/jobs/{job}").status_code == 401

        kept = client.cookies[cookie(address)]
        assert client.post("/logout").headers["location"] == "login"
        assert client.get(f"/jobs/{job}").status_code == 303
        assert httpx.get(f"{address}/", headers={"Cookie": f"{cookie(address)}={kept}"}).status_code == 401


def test_a_link_logs_in_once_and_only_who_opens_it(conn: Conn, address: str) -> None:
    secret = token(conn, "anna", kind="link", scopes=["read", "admin"])
    path = f"/login?link={secret}"
    with browser(address) as client:
        for other in (
            {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Mode": "no-cors"}, {"Sec-Purpose": "prefetch"},
            {"Sec-Fetch-Site": ""},
        ):  # fmt: skip
            page = client.get(path, headers=other)
            assert (page.status_code, "set-cookie" in page.headers) == (200, False), other
            assert f'name="link" value="{secret}"' in page.text
        assert client.head(path).status_code == 200
        assert client.get(path).headers["location"] == "./"
        assert {one["kind"] for one in client.get("/api/tokens").json()["tokens"]} == {"session"}
        assert client.get(path).status_code == 303, "reloaded"
    with browser(address) as another:
        used = another.get(path)
        assert used.status_code == 401
        assert "already used" in used.text
        assert another.post("/login", data={"link": secret}).status_code == 401


def test_a_session_ends_with_the_token_that_opened_it(conn: Conn, address: str) -> None:
    secret, row = tokens.create(conn, ANNA, name="anna", expires="1h")
    with browser(address) as client:
        opened = client.post("/login", data={"token": secret})
        (lasts,) = re.findall(r"Max-Age=(\d+)", opened.headers["set-cookie"])
        assert int(lasts) <= 3600
        assert client.get("/").status_code == 200
        assert tokens.revoke(conn, row["id"], ANNA)
        assert client.get("/").status_code == 303
    retention.delete_old_rows(conn, None)
    assert conn.execute("SELECT count(*) FROM callboard.tokens").fetchone() == (0,)


def test_after_the_login_nobody_is_sent_elsewhere(conn: Conn, address: str) -> None:
    secret = token(conn)
    for wanted in (
        "//evil.example/", "https://evil.example", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)",
        "%0d%0aSet-Cookie: a=b", "\r\nSet-Cookie: a=b", "/" * 50 + "evil.example", "x" * 5_000,
    ):  # fmt: skip
        with browser(address) as client:
            opened = client.post("/login", data={"token": secret, "next": wanted})
        assert opened.status_code == 303, wanted
        assert httpx.URL(f"{address}/login").join(opened.headers["location"]).host == "127.0.0.1", wanted
        assert opened.headers["location"].startswith("./"), wanted
        assert len(opened.headers.get_list("set-cookie")) == 1, wanted


def test_another_site_can_neither_log_in_nor_out_nor_act(conn: Conn, address: str) -> None:
    job, secret = make_job(conn, 1), token(conn)
    with browser(address) as client:
        client.post("/login", data={"token": secret})
        for site in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
            for path in ("/login", "/logout", f"/api/jobs/{job}/pause"):
                assert client.post(path, headers=site, data={"token": secret}).status_code == 403, path
        for origin in ("https://evil.example", "null", "http://[", ""):
            old = {"Sec-Fetch-Site": "", "Origin": origin}
            assert client.post("/logout", headers=old).status_code == 403, origin
        assert client.get("/").status_code == 200
    assert history(conn, job) == []


@pytest.mark.parametrize("prefix", ["/callboard", "/in/side"])
def test_the_login_works_under_a_prefix(conn: Conn, database_url: str, prefix: str) -> None:
    with served(Starlette(routes=[Mount(prefix, create_app(url=database_url))])) as address, browser(address) as client:
        sent = client.get(f"{prefix}/jobs/1")
        assert httpx.URL(f"{address}{prefix}/jobs/1").join(sent.headers["location"]).path == f"{prefix}/login"
        opened = client.post(f"{prefix}/login", data={"token": token(conn)})
        assert f"; Path={prefix};" in opened.headers["set-cookie"]
        assert client.get(f"{prefix}/").status_code == 200
        assert client.post(f"{prefix}/logout").status_code == 303
        assert client.get(f"{prefix}/").status_code == 303


def test_behind_https_the_cookie_is_secure(conn: Conn, address: str) -> None:
    secret = token(conn)
    opened = httpx.post(f"{address}/login", data={"token": secret}, headers={"X-Forwarded-Proto": "https"})
    assert opened.headers["set-cookie"].endswith("; Secure")


def test_a_share_token_shows_its_job_and_nothing_else(conn: Conn, address: str) -> None:
    job, other = make_job(conn, 1, tenant="acme"), make_job(conn, 1)
    secret, row = tokens.create(conn, ANNA, name="customer", job=job)
    assert row["tenant"] == "acme"
    assert history(conn, job) == [("share", "anna", "cli", None)]
    for headers, query in ((bearer(secret), ""), ({}, f"?token={secret}")):
        shown = httpx.get(f"{address}/api/jobs/{job}{query}", headers=headers)
        assert shown.json()["id"] == job
        refused = {
            path: httpx.get(f"{address}{path}{query}", headers=headers).status_code
            for path in (
                f"/api/jobs/{other}", f"/api/jobs/{job}/items", "/api/jobs", "/api/workers", "/api/tokens",
                "/api/openapi.json",
            )
        }  # fmt: skip
        assert set(refused.values()) <= {403, 404}, refused
        paused = httpx.post(f"{address}/api/jobs/{job}/pause{query}", headers=headers)
        assert paused.status_code == 403
        assert httpx.delete(f"{address}/api/jobs/{job}{query}", headers=headers).status_code == 403
    with browser(address) as client:
        assert client.post("/login", data={"token": secret}).status_code == 401
    assert tokens.revoke(conn, row["id"], ANNA)
    assert history(conn, job)[0] == ("unshare", "anna", "cli", None)
    assert httpx.get(f"{address}/api/jobs/{job}?token={secret}").status_code == 401


def test_a_page_of_another_site_reads_what_is_shared_and_nothing_else(
    conn: Conn, address: str, database_url: str
) -> None:
    job = make_job(conn, 1)
    share = token(conn, job=job)
    shared = f"/api/jobs/{job}?token={share}"
    assert httpx.get(f"{address}{shared}").headers["access-control-allow-origin"] == "*"
    for path, headers in (
        ("/api/jobs", bearer(token(conn))),
        (f"/api/jobs/{job}", bearer(share)),
        (f"/api/jobs/{job}", {}),
    ):
        assert "access-control-allow-origin" not in httpx.get(f"{address}{path}", headers=headers).headers
    with served(create_app(url=database_url, open_to_everyone=True)) as open_to_everyone:
        answer = httpx.get(f"{open_to_everyone}{shared}")
        assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (200, False)


def test_a_share_opens_an_app_that_has_another_login(conn: Conn, database_url: str) -> None:
    job = make_job(conn, 1)
    share, api = token(conn, job=job), token(conn)

    def authenticate(request: Any) -> Identity | None:
        return None

    with served(create_app(url=database_url, authenticate=authenticate)) as address:
        path = f"{address}/api/jobs/{job}"
        assert httpx.get(f"{path}?token={share}").status_code == 200
        assert httpx.get(f"{path}?token={api}").status_code == 401
        assert httpx.get(path, headers=bearer(api)).status_code == 401
        assert httpx.get(path, headers=bearer(share)).status_code == 401
        assert httpx.get(f"{address}/login").status_code == 404


def test_a_name_adds_no_line_to_the_log(conn: Conn, caplog: pytest.LogCaptureFixture) -> None:
    by = Requester("http", "anna\ntoken 1, api of root, is made by root, cli")
    with caplog.at_level(logging.INFO, "callboard.tokens"):
        secret, row = tokens.create(conn, by, name="ci\nsession 1 of root begins")
        assert tokens.log_in(conn, secret)
        tokens.revoke(conn, row["id"], by)
    assert len(caplog.messages) == 3
    assert not any("\n" in message for message in caplog.messages)


def test_tokens_over_http(conn: Conn, address: str) -> None:
    job = make_job(conn, 1)
    admin = bearer(token(conn, "admin", scopes=["read", "admin"]))
    made = httpx.post(f"{address}/api/tokens", headers=admin, json={"name": "ci", "scopes": ["read"], "expires": "30d"})
    assert made.status_code == 201
    assert (made.json()["created_by"], made.json()["kind"]) == ("admin", "api")
    assert httpx.get(f"{address}/api/jobs", headers=bearer(made.json()["token"])).status_code == 200
    more = httpx.post(f"{address}/api/tokens", headers=admin, json={"name": "ci", "scopes": ["control"]})
    assert (more.status_code, "control" in more.text) == (403, True)
    shared = httpx.post(f"{address}/api/tokens", headers=admin, json={"name": "customer", "job": job}).json()
    assert (shared["kind"], shared["scopes"], shared["job"]) == ("share", ["read"], job)
    assert history(conn, job) == [("share", "admin", "http", "127.0.0.1")]
    listed = httpx.get(f"{address}/api/tokens", headers=admin)
    assert [one["name"] for one in listed.json()["tokens"]] == ["customer", "ci", "admin"]
    assert "cb_" not in listed.text
    gone = f"{address}/api/tokens/{made.json()['id']}"
    assert httpx.delete(gone, headers=admin).status_code == 204
    assert httpx.delete(gone, headers=admin).status_code == 404
    mistakes: list[dict[str, Any]] = [
        {}, {"name": ""}, {"name": "a\x00"}, {"name": "x" * 201}, {"scopes": ["write"]}, {"scopes": []},
        {"expires": "soon"}, {"expires": "0s"}, {"job": 0}, {"job": "1"}, {"kind": "session"}, {"tenant": ""},
        {"odd": 1},
    ]  # fmt: skip
    for wrong in mistakes:
        body = wrong and {"name": "a", "scopes": ["read"], **wrong}
        assert httpx.post(f"{address}/api/tokens", headers=admin, json=body).status_code == 422, wrong
    assert httpx.post(f"{address}/api/tokens", headers=admin, json={"name": "a", "job": 5}).status_code == 404


def test_an_admin_of_a_tenant_gives_out_and_sees_tokens_of_it_alone(conn: Conn, address: str) -> None:
    mine, other = make_job(conn, 1, tenant="acme"), make_job(conn, 1, tenant="other")
    admin = bearer(token(conn, "admin", scopes=["read", "admin"], tenant="acme"))
    _, everyones = tokens.create(conn, ANNA, name="everyones")
    tokens.create(conn, ANNA, name="share", job=mine)

    def post(**body: Any) -> httpx.Response:
        return httpx.post(f"{address}/api/tokens", headers=admin, json={"name": "ci", "scopes": ["read"], **body})

    made = post()
    assert made.json()["tenant"] == "acme"
    assert post(tenant="other").status_code == 403
    assert post(job=other, scopes=None).status_code == 404
    assert post(job=mine, scopes=None).status_code == 201
    names = [one["name"] for one in httpx.get(f"{address}/api/tokens", headers=admin).json()["tokens"]]
    assert names == ["ci", "ci", "share", "admin"]
    assert httpx.delete(f"{address}/api/tokens/{everyones['id']}", headers=admin).status_code == 404


#: Paths as they go over the wire: a client would tidy them up.
TRICKS = [
    "//api/jobs", "/api//jobs", "/%2e%2e/api/jobs", "/static/../api/jobs", "/static/%2e%2e/api/jobs",
    "/static/..%2fapi/jobs", "/static/%2e%2e%2f%2e%2e%2fapi/jobs", "/static//api/jobs", "/healthz/../api/jobs",
    "/healthz/api/jobs", "/login/../api/jobs", "/login/api/jobs", "/login;/api/jobs",
    "/logout/../jobs/1", "/api/v1/../jobs",
    "/API/jobs", "/api/jobs/", "/api/jobs;x=/static/", "/api/jobs?/static/", "/api/jobs%3f/healthz", "/%61pi/jobs",
    "/api%2fjobs", "/api/jobs%00", "/./api/jobs", "/api/./jobs", "/jobs/1", "/jobs/%2e%2e/healthz", "/\\api/jobs",
    "http://127.0.0.1/healthz/../api/jobs",
]  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "/static", "/in/login"])
def test_no_path_leads_past_the_login(conn: Conn, database_url: str, prefix: str) -> None:
    job = make_job(conn, 1, name="what nobody may see")
    app = create_app(url=database_url)
    with served(Starlette(routes=[Mount(prefix, app)]) if prefix else app) as address:
        for path in (*TRICKS, f"/api/jobs/{job}", f"/healthz/../api/jobs/{job}"):
            for one in {path, prefix + path}:
                head, body = over_the_wire(address, f"GET {one} HTTP/1.1")
                assert re.match(r"HTTP/1.1 (30[37]|40[014]|421) ", head), (one, head)
                assert "what nobody may see" not in body, one


def over_the_wire(address: str, *lines: str, body: bytes = b"") -> tuple[str, str]:
    """Send a request as it is; return the head of the answer, and its body."""
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port), timeout=300) as wire:
        head = [*lines, f"Host: 127.0.0.1:{url.port}", "Connection: close"]
        wire.sendall("\r\n".join([*head, "", ""]).encode() + body)
        answer = b"".join(iter(lambda: wire.recv(65_536), b"")).decode()
    head_, _, text = answer.partition("\r\n\r\n")
    return head_, text


def test_headers_of_others_name_nobody_and_lead_nowhere(conn: Conn, address: str) -> None:
    forwarded = {
        "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/healthz", "X-Original-URL": "/healthz",
        "X-Rewrite-URL": "/healthz", "X-HTTP-Method-Override": "GET", "Forwarded": "host=evil.example",
    }  # fmt: skip
    assert httpx.get(f"{address}/api/jobs", headers=forwarded).status_code == 401
    sent = httpx.get(f"{address}/jobs/1", headers={**BROWSER, **forwarded})
    assert sent.headers["location"] == "../login?next=jobs%2F1"
    body = f"token={token(conn)}".encode()
    form = ["Content-Type: application/x-www-form-urlencoded", f"Content-Length: {len(body)}"]
    head, _ = over_the_wire(address, "POST /login HTTP/1.1", "Host: a;Domain=evil.example:1", *form, body=body)
    assert "evil" not in head


@pytest.mark.parametrize(
    ("path", "media", "most"),
    [
        ("/login", "application/x-www-form-urlencoded", parameters.FORM_BYTES),
        ("/api/tokens", "application/json", parameters.BODY_BYTES),
    ],
)
def test_a_body_that_is_too_large_or_never_ends_is_refused(
    conn: Conn, address: str, monkeypatch: pytest.MonkeyPatch, path: str, media: str, most: int
) -> None:
    login = {**bearer(token(conn, scopes=["admin"])), "Content-Type": media}
    large = httpx.post(f"{address}{path}", headers=login, content=b"a" * (most + 1))
    assert (large.status_code, large.json()["code"]) == (413, "too_large")
    streamed = httpx.post(f"{address}{path}", headers=login, content=iter([b"a" * 1_000] * (most // 1_000 + 2)))
    assert streamed.status_code == 413
    assert (
        httpx.post(f"{address}{path}", headers={**login, "Content-Type": "text/plain"}, content=b"a").status_code == 415
    )

    monkeypatch.setattr(parameters, "BODY_SECONDS", 0.2)
    said = [f"{name}: {value}" for name, value in login.items()]
    head, body = over_the_wire(address, f"POST {path} HTTP/1.1", *said, "Content-Length: 10", body=b"{")
    assert (head.split()[1], '"code":"slow"' in body) == ("408", True)


def test_what_is_remembered_of_tokens_is_bounded(
    conn: Conn, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(login, "KNOWN_TOKENS", 3)
    app = create_app(url=database_url)
    with served(app) as address:
        for _ in range(5):
            assert httpx.get(f"{address}/api/jobs", headers=bearer(token(conn))).status_code == 200
            assert httpx.get(f"{address}/api/jobs", headers=bearer("cb_unknown")).status_code == 401
    assert len(app.state.login._known) <= 3


def test_without_its_database_the_app_lets_nobody_in_and_says_why() -> None:
    with served(create_app(url="postgresql://127.0.0.1:1/none")) as address:
        answer = httpx.get(f"{address}/api/jobs", headers=bearer("cb_any"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "PostgreSQL" in answer.json()["detail"]
        assert httpx.get(f"{address}/login").status_code == 200
        assert httpx.get(f"{address}/healthz").status_code == 200


def test_an_app_is_open_or_has_a_login() -> None:
    with pytest.raises(ValueError, match="not both"):
        create_app(open_to_everyone=True, authenticate=lambda _request: None)
