"""Pages: fetches and measures the front pages of a tenant's domains."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import dramatiq

import callboard
from callboard.actors.remote import Refused, call, is_passing


@dramatiq.actor(queue_name="callboard", retry_when=is_passing, min_backoff=200)
def fetch_page(domain: str) -> dict[str, object]:
    """Return the title, the number of links and the bytes of a domain's front page. Skip a domain without a site."""
    try:
        page = call(f"sites/{domain}")
    except Refused as error:
        if error.status == HTTPStatus.NOT_FOUND:
            raise callboard.Skip("no such site") from error
        raise
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    return {"title": title[1].strip() if title else None, "links": page.count("<a "), "bytes": len(page)}


def submit(tenant: str, domains: Iterable[str], **options: Any) -> callboard.Job:
    """Submit a batch of domains, which only this tenant sees. The job stops if a fifth of the items fail."""
    limits: dict[str, Any] = {"rate": "50/s", "max_failures": "20%"}
    return callboard.submit(fetch_page, domains, name=f"domains of {tenant}", tenant=tenant, **limits | options)
