"""The tracked side: the same actor, and one that returns a result of 70 bytes."""

import dramatiq

import callboard

broker = callboard.install()


@dramatiq.actor(max_retries=0)
def nothing(number: int) -> None:
    """As on the untracked side."""


@dramatiq.actor(max_retries=0)
def result(number: int) -> dict[str, str]:
    return {"score": "x" * 58}


@dramatiq.actor(max_retries=0)
@callboard.batch
def many(numbers: list[int]) -> None:
    """Nothing, for all that a message carries."""
