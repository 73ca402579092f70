"""What a soak does to its services and workers, and when: drawn by chance from a seed, so that it can be replayed."""

import random
from collections.abc import Sequence
from typing import NamedTuple

#: Every kind of fault, and what it does. `{who}` is a worker, `{seconds}` how long it lasts.
KINDS = {
    "worker killed": "SIGKILL to {who} and its master",
    "process killed": "SIGKILL to the process of {who}; its master ends with it",
    "worker asked to stop": "SIGTERM to {who}",
    "worker told to reload": "SIGHUP to {who}",
    "worker frozen": "SIGSTOP to {who}, continued after {seconds} s",
    "postgres restarted": "PostgreSQL stopped in order, started again",
    "postgres killed": "SIGKILL to PostgreSQL, started again",
    "backends terminated": "pg_terminate_backend on every session",
    "database cut off": "the proxy before PostgreSQL cuts every connection",
    "rabbitmq restarted": "RabbitMQ stopped in order, started again",
    "connections closed": "RabbitMQ closes all connections",
    "broker cut off": "the proxy before RabbitMQ cuts every connection",
    "queue purged": "every message that lies in the queue is lost",
    "queue deleted": "the queue goes, with every message in it",
    "submitter killed": "SIGKILL to a process that submits or sends",
}
#: What ends a worker's process. From the middle on the second worker is spared: it shows what grows.
ENDS_A_PROCESS = ("worker killed", "process killed", "worker asked to stop", "worker told to reload")
#: Seconds between two faults, and for which a worker stands still: its heartbeat limit lies in between.
GAP = (2.0, 6.0)
STILL = (1.0, 15.0)


class Fault(NamedTuple):
    """One fault: seconds after the start, its kind, the worker it happens to, and for how long if it lasts."""

    at: float
    kind: str
    worker: int
    seconds: float

    def line(self) -> str:
        """As it is printed."""
        what = KINDS[self.kind].format(who=f"worker {self.worker + 1}", seconds=self.seconds)
        return f"{self.at:7.1f} s  {self.kind}: {what}"


def plan(
    seed: int, length: float, *, kinds: Sequence[str] = tuple(KINDS), gap: tuple[float, float] = GAP,
    still: tuple[float, float] = STILL,
) -> list[Fault]:  # fmt: skip
    """The faults of `length` seconds; each kind comes once before any comes again."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    deck: list[str] = []
    at = chance.uniform(*gap)
    while at < length:
        if not deck:
            deck = chance.sample(list(kinds), len(kinds))
        kind, worker = deck.pop(), chance.randrange(2)
        if kind in ENDS_A_PROCESS and at > length / 2:
            worker = 0
        faults.append(Fault(round(at, 1), kind, worker, round(chance.uniform(*still), 1)))
        at += chance.uniform(*gap)
    return faults
