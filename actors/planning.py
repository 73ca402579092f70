"""Planning: classifies the data elements of a phase, and saves each classification with its item's outcome."""

from collections.abc import Iterable
from typing import Any

import dramatiq

import callboard
from callboard.actors.remote import call, is_passing

#: A migration of the app. A classification stays when its job is deleted.
TABLES = """
CREATE TABLE IF NOT EXISTS classifications (
    phase text, element text, information_security_classification text NOT NULL, risk_level text NOT NULL,
    regulatory_flag bool NOT NULL, pii_flag bool NOT NULL, job bigint, revision integer DEFAULT 1,
    updated_at timestamptz DEFAULT now(), PRIMARY KEY (phase, element));
"""
SAVE = """
INSERT INTO classifications
VALUES (%(phase)s, %(element)s, %(information_security_classification)s, %(risk_level)s, %(regulatory_flag)s,
        %(pii_flag)s, %(job)s)
ON CONFLICT (phase, element) DO UPDATE
SET (information_security_classification, risk_level, regulatory_flag, pii_flag, job, revision, updated_at)
    = (excluded.information_security_classification, excluded.risk_level, excluded.regulatory_flag, excluded.pii_flag,
       excluded.job, classifications.revision + 1, now())
"""


@dramatiq.actor(queue_name="callboard", retry_when=is_passing, min_backoff=200)
def classify_element(phase: str, element: str) -> dict[str, object]:
    """Classify a data element of a phase."""
    callboard.step(f"classifying {element}")
    found: dict[str, object] = call("classify", name=element)
    callboard.save(SAVE, {**found, "phase": phase, "element": element, "job": callboard.current().job})
    return found


def submit(phase: str, elements: Iterable[str], **options: Any) -> callboard.Job:
    """Submit the elements of a phase, to be classified again."""
    items = ({"phase": phase, "element": element} for element in elements)
    return callboard.submit(classify_element, items, name=f"classify {phase}", **options)
