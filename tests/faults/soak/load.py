"""What a soak works on: jobs submitted by processes that are killed, plain sends, and messages of a stranger."""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from callboard.commands.services import Process
from callboard.sql.call_bytes import unpacked
from tests.faults.rig.run_log import RunLog
from tests.faults.rig.scenario import Scenario, fate
from tests.faults.soak.sender import sent
from tests.faults.soak.verdict import Found
from tests.support.forked import ForkedProcess

MODULE = "tests.faults.soak.actors"
#: Items that are open at any time, and in one job.
OPEN = 1_500
SMALLEST, LARGEST = 200, 1_500
CHILDREN = 3
#: How jobs differ, in turn: one by one, many items a message, and no more than so many at once by an argument's value.
KINDS = ((), ("--chunk", "20"), ("--concurrency-by", "seconds=40"))
#: Seconds before a submission that failed is tried again.
PAUSE = 1.0
#: How an item should end, by its fate.
ENDS = {"succeed": "succeeded", "retry": "succeeded", "fail": "failed", "skip": "skipped"}
ITEMS = """
SELECT j.id, i.item, coalesce(j.key, ''), coalesce(i.actor, j.actor), i.args,
       coalesce(i.message_uuid::text, i.message_id, ''), i.state::text,
       EXISTS (SELECT FROM callboard.attempts AS a WHERE a.job_id = i.job_id AND a.item = i.item
               AND a.attempt = i.attempt AND a.kind = 'crashed')
FROM callboard.items AS i JOIN callboard.jobs AS j ON j.id = i.job_id
"""


@dataclass
class Submission:
    """A file of items with a key, and the process that submits it."""

    key: str
    actor: str
    items: int
    file: Path
    options: tuple[str, ...] = ()
    process: Process | None = None
    done: bool = False
    due: float = 0.0
    starts: int = 0

    def look(self, environment: dict[str, str], log: Path) -> None:
        """Start it (again) when it is due."""
        if self.done or (self.process is not None and self.process.running()):
            return
        if self.process is not None:
            self.done = self.process.kill() == 0
            self.due, self.process = time.monotonic() + PAUSE, None
        elif time.monotonic() >= self.due:
            arguments = ["submit", self.actor, str(self.file), "--key", self.key, "--name", self.key, *self.options]
            command = [sys.executable, "-m", "tests.faults.rig.submitter", "callboard", *arguments]
            self.process = ForkedProcess(command, log=log, env=environment).start()
            self.starts += 1


@dataclass
class Load:
    """See the module. Everything is started by the thread that calls `tend`."""

    scenario: Scenario
    chance: random.Random
    submissions: list[Submission] = field(default_factory=list)
    senders: dict[str, Process] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of submitters and senders."""
        return {**os.environ, **self.scenario.environment, "CALLBOARD_ACTORS": MODULE}

    def processes(self) -> list[Process]:
        """Those that submit or send now."""
        submitting = [one.process for one in self.submissions if one.process is not None]
        return [process for process in (*submitting, *self.senders.values()) if process.running()]

    def tend(self, open_items: int) -> None:
        """Keep it going: enough items, every submission under way, both senders."""
        active = [one for one in self.submissions if not one.done]
        if open_items + sum(one.items for one in active) < OPEN:
            self._add()
        self.finish()
        for kind in ("plain", "foreign"):
            if kind not in self.senders or not self.senders[kind].running():
                self._send(kind)

    def finish(self) -> bool:
        """Go on with the submissions that are not done; whether all are."""
        for one in self.submissions:
            one.look(self.environment, self.scenario.folder / "submitters.log")
        return all(one.done for one in self.submissions)

    def end(self) -> None:
        """Nobody submits or sends any more."""
        for process in self.processes():
            process.kill()

    def _add(self) -> None:
        number = len(self.submissions)
        actor = "parent" if number % 3 == 2 else "work"
        count = self.chance.randrange(SMALLEST, LARGEST) // (1 + CHILDREN * (actor == "parent"))
        file = self.scenario.folder / f"job-{number}.jsonl"
        lines = (self._item(actor, n) for n in range(count))
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        kinds = KINDS if actor == "work" else KINDS[:-1]  # a parent has no such argument
        options = kinds[number // 2 % len(kinds)]
        self.submissions.append(Submission(f"job-{number}", actor, count, file, options))

    def _item(self, actor: str, number: int) -> dict[str, object]:
        if actor == "parent":
            return {"number": number, "children": CHILDREN}
        slow = self.chance.random() < 0.03
        return {"number": number, "fate": fate(number), "seconds": 0.5 if slow else 0.01}

    def _send(self, kind: str) -> None:
        command = [sys.executable, "-m", "tests.faults.soak.sender", kind, str(self._list(kind))]
        log = self.scenario.folder / "senders.log"
        self.senders[kind] = ForkedProcess(command, log=log, env=self.environment).start()

    def _list(self, kind: str) -> Path:
        return self.scenario.folder / f"{kind}.list"

    # What it comes to ------------------------------------------------------------------------------------------------

    def found(self) -> list[Found]:
        """Every item of the record."""
        runs = all_runs(self.scenario.run_log)
        return [
            Found(what, state, wanted, runs[job, item], died and state == "failed")
            for job, item, key, actor, args, message, state, died in self.scenario.sql(ITEMS)
            for what, wanted in [_named(key, actor, json.loads(unpacked(bytes(args))), message)]
        ]

    def wanted(self, found: list[Found]) -> tuple[Counter[Hashable], set[Hashable]]:
        """What must be there as often as counted, and what may be: children come of a parent that succeeded."""
        wanted = Counter[Hashable](self._inputs())
        for item in found:
            if isinstance(item.what, tuple) and item.what[1] == "parent" and item.state == "succeeded":
                wanted.update((item.what[0], "child", child) for child in range(CHILDREN))
        possible: set[Hashable] = set()
        for kind in self.senders:
            sure, tried = sent(self._list(kind))
            wanted.update(sure)
            possible |= tried
        return wanted, possible

    def _inputs(self) -> Iterator[Hashable]:
        for one in self.submissions:
            yield from ((one.key, one.actor, number) for number in range(one.items))


def all_runs(ledger: RunLog) -> Counter[tuple[int, int]]:
    """How often each item began, as the actors say."""
    rows = ledger.conn.execute("SELECT job, item, count(*) FROM runs GROUP BY job, item")
    return Counter({(job, item): count for job, item, count in rows})


def _named(key: str, actor: str, call: dict[str, list[int] | dict[str, object]], message: str) -> tuple[Hashable, str]:
    """What an item is, and how it should end."""
    arguments, options = call["args"], call["kwargs"]
    if not key:
        return message, "succeeded"
    if isinstance(arguments, list) and arguments:
        return (key, "child", arguments[0]), "succeeded"
    assert isinstance(options, dict)
    number = options["number"]
    assert isinstance(number, int)
    return (key, actor, number), ENDS[fate(number)] if actor == "work" else "succeeded"
