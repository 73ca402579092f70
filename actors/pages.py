"""Pages: the front pages of a tenant's domains are fetched and measured."""

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import dramatiq

import callboard
from callboard.actors.remote import Refused, call, is_passing


@dramatiq.actor(queue_name="callboard", retry_when=is_passing, min_backoff=200)
def fetch_page(domain: str) -> dict[str, object]:
    """The title of a domain's front page, and how many links it has. A domain without a site is skipped."""
    try:
        page = call(f"sites/{domain}")
    except Refused as error:
        if error.status == HTTPStatus.NOT_FOUND:
            raise callboard.Skip("no such site") from error
        raise
    title = re.search(r"<title>(.*?)</title>", page, re.DOTALL)
    return {"title": title[1].strip() if title else None, "links": page.count("<a "), "bytes": len(page)}


def submit(tenant: str, domains: Iterable[str], **options: Any) -> callboard.Job:
    """A batch of domains, which only this tenant sees; it stops if a fifth of them fails."""
    limits: dict[str, Any] = {"rate": "50/s", "max_failures": "20%"}
    return callboard.submit(fetch_page, domains, name=f"domains of {tenant}", tenant=tenant, **limits | options)
