"""Filters of lists of jobs: as values, and as the words of a search field. Without access to the database."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from typing import Any

from callboard.sql.json_values import is_storable
from callboard.sql.limits import MAX_SPAN_SECONDS, SPAN_PATTERN, UNIT_SECONDS, YEARS
from callboard.sql.states import JOB_FINAL, JOB_STATES

#: The most characters and words of a search: the name of each examined job is compared with each word.
MAX_SEARCH_CHARACTERS, MAX_SEARCH_WORDS = 2_000, 50
#: The states of an open job.
JOB_OPEN = frozenset(JOB_STATES) - set(JOB_FINAL)
#: The properties of a job that `is:` and `not:` name.
FLAGS = ("stalled", "standing", "failing")
#: The words of a search that take any text, and those that take a time.
TEXTS = ("actor", "tenant", "key")
TIMES = {"since": "created_after", "until": "created_before", "ended": "ended_after"}
#: All words, as errors and the command line's help list them.
WORDS = (
    "state:STATE, actor:NAME, tenant:NAME, key:KEY, name:TEXT, metadata.FIELD:VALUE, since:24h, until:2027-01-31, "
    "ended:24h, is:open, is:ended, is:FLAG, not:FLAG, or a part of the name; "
    f"a STATE is {', '.join(JOB_STATES[:-1])} or {JOB_STATES[-1]}, a FLAG {', '.join(FLAGS[:-1])} or {FLAGS[-1]}"
)
#: The words that take one of a few values, and the fields of a filter that each sets.
_CHOICES: dict[tuple[str, str], dict[str, Any]] = {
    **{("state", state): {"states": frozenset([state])} for state in JOB_STATES},
    **{(word, flag): {flag: word == "is"} for word in ("is", "not") for flag in FLAGS},
    ("is", "open"): {"states": JOB_OPEN},
    ("is", "ended"): {"states": frozenset(JOB_FINAL)},
}
#: A word of a search with its value, or a text. A value or a text with spaces is in quotes.
_TOKEN = re.compile(r'\s*+(?:([^\s:"]*):)?(?:"([^"]*)"(?=\s|$)|([^\s"]*)(?=\s|$))')


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """The jobs that match all given fields.

    - `states`: one of these. `names`: each is a part of the name, case ignored. `metadata`: the values of these fields,
      as text.
    - `created_after`, `created_before`, `ended_after`: a time, or a span before now.
    - `standing`: has the plain sends of a day. `stalled`: does not move. `failing`: failed, or has failed items.
    """

    states: frozenset[str] | None = None
    actor: str | None = None
    tenant: str | None = None
    key: str | None = None
    names: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_after: datetime | timedelta | None = None
    created_before: datetime | timedelta | None = None
    ended_after: datetime | timedelta | None = None
    standing: bool | None = None
    stalled: bool | None = None
    failing: bool | None = None

    def __post_init__(self) -> None:
        given = (self.actor, self.tenant, self.key, *self.names, *self.metadata, *self.metadata.values())
        texts = [text for text in given if text is not None]
        _check_length(sum(map(len, texts)))
        if not all(map(is_storable, texts)):
            raise ValueError("a search must not contain a NUL character or half of a surrogate pair")

    @property
    def given(self) -> dict[str, Any]:
        """The fields that are set."""
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if value not in (None, (), {})}

    def also(self, other: "JobFilter") -> "JobFilter":
        """Return the filter of the jobs that match both. Raises ValueError if both set a field to different values, for
        example the actor.
        """
        mine, others = self.given, other.given
        shared = {name: _both(name, mine[name], others[name]) for name in mine.keys() & others.keys()}
        return JobFilter(**{**mine, **others, **shared})


def _check_length(characters: int) -> None:
    if characters > MAX_SEARCH_CHARACTERS:
        raise ValueError(f"a search has {MAX_SEARCH_CHARACTERS} characters at most, not {characters}")


def parse_search(text: str) -> JobFilter:
    """Read the words of a search, such as `state:failed actor:charge metadata.customer:17 since:24h "autumn ads"`.

    A job must match all of them; several states are alternatives. Raises ValueError, which lists the known words.
    """
    _check_length(len(text))
    return _all_of(split_search(text))


def parse_arguments(arguments: Iterable[str]) -> JobFilter:
    """Read the words of a search from a command line: the shell removed the quotes, so each argument is one word."""
    parts = (argument.partition(":") for argument in arguments)
    return _all_of((word, value) if colon else ("name", word) for word, colon, value in parts)


def split_search(text: str) -> Iterator[tuple[str, str]]:
    """Yield the words of a search, each with its value; a text without a word is a `name`. Raises ValueError."""
    place = 0
    while place < len(text.rstrip()):
        token = _TOKEN.match(text, place)
        if token is None:
            rest = text[place:].strip()[:40]
            raise ValueError(f'{rest} is no word of a search: a value with spaces is in "quotes"; there are {WORDS}')
        word, quoted, plain = token.groups()
        yield "name" if word is None else word, plain if quoted is None else quoted
        place = token.end()


def parse_moment(name: str, text: str) -> datetime | timedelta:
    """Read a time with its zone, a day (in UTC), or a span before now. Raises ValueError, which names the parameter."""
    if span := SPAN_PATTERN.fullmatch(text):
        seconds = float(span[1]) * UNIT_SECONDS[span[2]]
        if seconds <= MAX_SPAN_SECONDS:
            return timedelta(seconds=seconds)
    with suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(text)
        if time.tzinfo is None and re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
            time = time.replace(tzinfo=UTC)
        if time.tzinfo is not None and YEARS[0] < time.astimezone(UTC).year < YEARS[1]:
            return time
    raise ValueError(
        f"{name} must be a span before now like 90s, 5m, 2h, 1d, a day like 2027-01-31, or a time with its zone like "
        f"2027-01-31T12:00:00Z; not {text[:40]!r}"
    )


def _all_of(words: Iterable[tuple[str, str]]) -> JobFilter:
    found, states = JobFilter(), frozenset[str]()
    for count, (word, value) in enumerate(words, 1):
        if count > MAX_SEARCH_WORDS:
            raise ValueError(f"a search has {MAX_SEARCH_WORDS} words at most")
        one = _word(word, value)
        if word == "state":
            states |= one.states or frozenset()
        else:
            found = found.also(one)
    return found.also(JobFilter(states=states)) if states else found


def _word(word: str, value: str) -> JobFilter:
    given = _CHOICES.get((word, value)) or (_read(word, value) if value else {})
    if not given:
        raise ValueError(f"{word[:40]}:{value[:40]} is no word of a search; there are {WORDS}")
    return JobFilter(**given)


def _read(word: str, value: str) -> dict[str, Any]:
    """Return the filter's field of a word that takes any text or a time; an empty dict for other words."""
    family, _, entry = word.partition(".")
    if word == "name":
        return {"names": (value,)}
    if word in TEXTS:
        return {word: value}
    if word in TIMES:
        return {TIMES[word]: parse_moment(word, value)}
    return {"metadata": {entry: value}} if family == "metadata" and entry else {}


def _both(name: str, one: Any, two: Any) -> Any:
    if name == "names":
        return (*one, *two)
    if name == "states":
        return one & two
    if name == "metadata" and all(one[entry] == two[entry] for entry in one.keys() & two.keys()):
        return {**one, **two}
    if one != two:
        raise ValueError(f"{name} is given twice, as {str(one)[:40]} and as {str(two)[:40]}")
    return one
