"""The tracked side: the same actor, one that returns a result of 70 bytes, one that saves it, one that takes 20 ms."""

import time

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


@dramatiq.actor(max_retries=0)
def saving(number: int) -> None:
    """Save one row of the app's own."""
    now = callboard.current()
    callboard.save("INSERT INTO scores VALUES (%s, %s, %s)", (now.job, now.item, "x" * 58))


@dramatiq.actor(max_retries=0)
def nap(number: int) -> None:
    """Take as long as a quick call over the network."""
    time.sleep(0.02)


@dramatiq.actor(max_retries=0)
def clock(number: int) -> float:
    """Return when it ran."""
    return time.time()


@dramatiq.actor(max_retries=0)
def varied(seconds: float) -> None:
    """Take so long."""
    if seconds:
        time.sleep(seconds)


@dramatiq.actor(max_retries=0)
def fail_some(number: int) -> None:
    """Fail at the first attempt of a hundredth of the items, in three ways."""
    if number % 100 == 7 and callboard.current().attempt == 1:
        raise (LookupError, RuntimeError, ValueError)[number // 100 % 3](f"no price for {number}")
