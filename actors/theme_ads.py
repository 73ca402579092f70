"""Theme ads: creates a responsive search ad for each ad group, five customers at a time, two ad groups of each."""

from collections.abc import Iterable
from typing import Any

import dramatiq

import callboard
from callboard.actors.remote import Refused, call, is_passing


@dramatiq.actor(queue_name="callboard", retry_when=is_passing, min_backoff=200)
def create_ad(customer_id: int, ad_group_id: int) -> dict[str, str]:
    """Create an ad and return its resource. An ad group that already has one, or can't have one, is skipped."""
    try:
        answer = call(f"ads/{customer_id}", ad_group_id=ad_group_id)
    except Refused as error:
        if error.retry_after:
            callboard.hold(error.retry_after, error.said)  # this customer's other ad groups, too
            raise callboard.Postpone(error.retry_after, error.said) from error
        if error.said == "No existing ad":
            raise callboard.Skip(error.said) from error
        raise
    if answer["note"] == "Already processed":
        raise callboard.Skip(answer["note"])
    return {"new_ad_resource": answer["resource"]}


def submit(ad_groups: Iterable[tuple[int, int]], **options: Any) -> callboard.Job:
    """Submit a job of ad groups, each (customer, ad group)."""
    return callboard.submit(create_ad, ad_groups, name="theme ads", concurrency_by={0: 2}, lanes=5, **options)
