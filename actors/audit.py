"""Audit: asks AI providers about a company, in stages. Each stage begins when the one before is completed."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dramatiq

import callboard
from callboard import Results, Stage
from callboard.actors.remote import acall, is_passing

PROVIDERS = ("north", "south", "west")
TOPICS = ("prices", "reviews", "jobs", "service", "quality")
FORMS = ("{} {}", "is {} good at {}?", "{} or others for {}", "why {} for {}?", "{} {} this year", "best {} {}",
         "{} {} near me", "{} {} for firms", "complaints about {} {}")  # fmt: skip

#: A migration of the app: the final table.
TABLES = """
CREATE TABLE IF NOT EXISTS audits (
    company text, provider text, named float8, insight text, PRIMARY KEY (company, provider));
"""
SAVE = """
INSERT INTO audits VALUES (%s, %s, %s, %s)
ON CONFLICT (company, provider) DO UPDATE SET (named, insight) = (excluded.named, excluded.insight)
"""


@dramatiq.actor(queue_name="callboard")
def generate_queries(company: str) -> list[str]:
    """Return the 45 queries about a company."""
    return [form.format(company, topic) for form in FORMS for topic in TOPICS]


@dramatiq.actor(queue_name="callboard", retry_when=is_passing, min_backoff=200)
async def ask_provider(company: str, provider: str, query: str) -> dict[str, str]:
    """Ask one provider one query, without blocking the event loop."""
    callboard.step(f"{provider}: {query}")
    answer = await acall(f"ask/{provider}", query=query)
    return {"company": company, "provider": provider, "answer": answer["answer"]}


@dramatiq.actor(queue_name="callboard")
def analyse_answer(company: str, provider: str, answer: str) -> list[object]:
    """Return whether the answer names the company."""
    return [company, provider, company in answer]


@dramatiq.actor(queue_name="callboard")
def score_providers(answers: list[tuple[str, str, bool]]) -> list[list[object]]:
    """Return, for each provider, the share of answers that name the company."""
    asked = Counter((company, provider) for company, provider, _ in answers)
    named = Counter((company, provider) for company, provider, is_named in answers if is_named)
    return [[*key, round(named[key] / count, 3)] for key, count in asked.items()]


@dramatiq.actor(queue_name="callboard")
def save_insight(company: str, provider: str, named: float) -> None:
    """Save a provider's score and its meaning in the final table, together with this item's outcome."""
    insight = f"{provider} {'knows' if named > 1 / 2 else 'should hear of'} {company}"
    callboard.save(SAVE, (company, provider, named, insight))


def questions(results: Results) -> Iterator[dict[str, str]]:
    """Yield an item for each query and provider."""
    for one in results:
        for query in one.result:
            for provider in PROVIDERS:
                yield {"company": one.args[0], "provider": provider, "query": query}


def together(results: Results) -> Iterator[list[object]]:
    """Yield one item with all analyses."""
    yield [[one.result for one in results]]


def each(results: Results) -> Iterator[list[object]]:
    """Yield an item for each score."""
    for one in results:
        yield from one.result


def submit(company: str, **options: Any) -> callboard.Job:
    """Submit an audit of a company. It goes on if some answers fail."""
    steps = [
        Stage(generate_queries, items=[company]),
        Stage(ask_provider, make=questions, on_failure="go on"),
        Stage(analyse_answer),
        Stage(score_providers, make=together),
        Stage(save_insight, make=each),
    ]
    return callboard.stages(f"audit of {company}", steps, **options)
