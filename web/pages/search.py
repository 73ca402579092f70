"""The search field of the list: its words, each with the search without it, and suggested words."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from callboard.sql.reads.job_filter import FLAGS, split_search
from callboard.sql.states import JOB_STATES

#: Words that are always suggested.
ALWAYS = (
    "is:open", "is:ended", *(f"is:{flag}" for flag in FLAGS), *(f"not:{flag}" for flag in FLAGS),
    *(f"state:{state}" for state in JOB_STATES), "since:1h", "since:24h", "since:7d", "ended:24h",
)  # fmt: skip
#: Maximum number of words suggested from the jobs of the page, and maximum characters of a word.
MOST, LONGEST = 100, 80


def chips(text: str) -> list[tuple[str, str]]:
    """Return the words of a valid search, each with the rest of the search without it."""
    words = [_written(word, value) for word, value in split_search(text)]
    return [(one, " ".join(words[:at] + words[at + 1 :])) for at, one in enumerate(words)]


def suggestions(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return suggested words: the general ones, and values of these jobs."""
    found = dict.fromkeys(word for job in jobs for word in _of(job) if len(word) <= LONGEST and '"' not in word)
    return [*ALWAYS, *list(found)[:MOST]]


def _of(job: Mapping[str, Any]) -> Iterable[str]:
    for name in ("actor", "tenant"):
        if job[name]:
            yield _written(name, job[name])
    for entry, value in job["metadata"].items():
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value) and not set(entry) & set(' :"'):
            yield _written(f"metadata.{entry}", str(value))


def _written(word: str, value: str) -> str:
    """Return a search word as a user types it."""
    quoted = not value or any(one.isspace() for one in value) or (word == "name" and ":" in value)
    text = f'"{value}"' if quoted else value
    return text if word == "name" else f"{word}:{text}"
