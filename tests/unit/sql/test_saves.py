"""Which statement is taken to have broken the connection."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest

from callboard.sql.rows import Event, Save, Saves
from callboard.sql.writes import saves


class Answer:
    """A cursor of a connection that breaks in a round trip with BREAKS, and loses all answers of that round trip."""

    statusmessage: str | None = None

    def __init__(self, round_trip: "list[Answer]") -> None:
        self.round_trip = round_trip

    def execute(self, text: bytes, _params: None) -> None:
        self.text = text
        self.round_trip.append(self)


class LosesAnswers:
    closed = False
    restore_session = ""

    def __init__(self) -> None:
        self.round_trip: list[Answer] = []

    def execute(self, text: str, *, prepare: bool) -> None:
        if "ALL IMMEDIATE" in text and any(answer.text == b"LAST AND LATER" for answer in self.round_trip):
            self.closed = True
            raise psycopg.OperationalError("server closed the connection unexpectedly")

    @contextmanager
    def pipeline(self) -> Iterator[None]:
        self.round_trip.clear()
        yield
        if any(answer.text == b"BREAKS" for answer in self.round_trip):
            self.closed = True
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        for answer in self.round_trip:
            answer.statusmessage = "INSERT 0 1"

    def cursor(self) -> Answer:
        return Answer(self.round_trip)


@pytest.mark.parametrize(
    ("texts", "charged"),
    [
        (("FIRST", "BREAKS", "LAST"), ["FIRST", "BREAKS", "BREAKS"]),
        (("FIRST", "LAST AND LATER"), ["LAST AND LATER"] * 3),
    ],
    ids=["in its round trip", "after the last"],
)
def test_a_break_that_loses_the_answers_is_charged_to_the_statement_that_broke_the_second_time(
    texts: Sequence[str], charged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saves, "TRANSACTION_SECONDS", 300.0)
    statements = [Save(text, None, "actors.py:1 in work") for text in texts]
    event = Event(1, 0, 1, "succeeded", 0.01, 0.0, 1, saves=Saves(statements, 10))
    for _ in range(saves.MAX_BREAKS):
        with pytest.raises(psycopg.OperationalError):
            saves.run(LosesAnswers(), [event])  # type: ignore[arg-type]
    assert event.saves is not None
    assert [save.text for save in event.saves.breaks] == charged
    assert list(saves.run(LosesAnswers(), [event]).refused) == [(1, 0)]  # type: ignore[arg-type]
