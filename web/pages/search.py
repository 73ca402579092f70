"""The search field of the list: its words, each with the search without it, and words to choose from."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from callboard.sql.reads.job_filter import FLAGS, split_search
from callboard.sql.states import JOB_STATES

#: Words that need no job to be suggested.
ALWAYS = (
    "is:open", "is:ended", *(f"is:{flag}" for flag in FLAGS), *(f"not:{flag}" for flag in FLAGS),
    *(f"state:{state}" for state in JOB_STATES), "since:1h", "since:24h", "since:7d", "ended:24h",
)  # fmt: skip
#: Words that the jobs of the page are asked for at most, and characters of one.
MOST, LONGEST = 100, 80


def chips(text: str) -> list[tuple[str, str]]:
    """The words of a search that makes sense, each with the search that is left without it."""
    words = [_written(word, value) for word, value in split_search(text)]
    return [(one, " ".join(words[:at] + words[at + 1 :])) for at, one in enumerate(words)]


def suggestions(jobs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Words that find some jobs: those that hold for any job, and those of these jobs."""
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
    """A word of a search as it is typed."""
    quoted = not value or any(one.isspace() for one in value) or (word == "name" and ":" in value)
    text = f'"{value}"' if quoted else value
    return text if word == "name" else f"{word}:{text}"
