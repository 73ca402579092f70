"""A soak from its plan to its verdict."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

from callboard.commands.services import Server
from callboard.sql.pool import connect
from callboard.sql.reads import queries
from tests.faults.rig.proxy import Proxy, proxy
from tests.faults.rig.scenario import Scenario
from tests.faults.soak.injector import ERRORS, FaultInjector
from tests.faults.soak.load import MODULE, Load
from tests.faults.soak.plan import Fault
from tests.faults.soak.verdict import Verdict, account, growth
from tests.faults.soak.watch import Moment, Watch
from tests.support.nodes import Node
from tests.support.workers import wait_until

#: Seconds for everything to end when no more faults come.
CALM = 600.0
#: Seconds after which a fault comes again that hit nobody.
AGAIN = 0.5
#: Connections that a worker's process may have: to PostgreSQL, as the README says; to RabbitMQ one for each of two
#: queues, for what is delayed in each, and for publishing, and as many again by which these threads declare a queue
#: that was gone.
TO_POSTGRES, TO_RABBITMQ = 5, 2 * (2 * 2 + 1)
#: Dead rows of a table that autovacuum leaves: its base threshold, the share that our migrations set, and what comes
#: while it sleeps.
DEAD, DEAD_SHARE = 1_000, 0.2
MODULES = (MODULE,)


@contextmanager
def proxies(environment: dict[str, str]) -> Iterator[tuple[dict[str, str], Proxy, Proxy]]:
    """A proxy before each service that the environment names; the environment that goes by them."""
    where, amqp = conninfo_to_dict(environment["DATABASE_URL"]), urlsplit(environment["AMQP_URL"])
    with tempfile.TemporaryDirectory(prefix="callboard-", dir="/tmp") as name:
        target = f"{where['host']}/.s.PGSQL.{where.get('port', 5432)}"
        with (
            proxy(target, f"{name}/.s.PGSQL.5432") as database,
            proxy((str(amqp.hostname), amqp.port or 5672)) as broker,
        ):
            by = {
                "DATABASE_URL": f"postgresql://postgres@/{where['dbname']}?host={name}",
                "AMQP_URL": environment["AMQP_URL"].replace(f":{amqp.port}/", f":{broker.port}/"),
            }
            yield {**environment, **by}, database, broker


@dataclass
class Soak:
    """See the module. `say` takes a line for who looks on."""

    scenario: Scenario
    server: Server
    node: Node
    amqp_url: str  # by no proxy
    before_database: Proxy
    before_broker: Proxy
    seed: int
    plan: Sequence[Fault]
    length: float
    say: Callable[[str], None]
    environment: dict[str, str] = field(default_factory=dict)
    modules: Sequence[str] = MODULES
    done: Counter[str] = field(default_factory=Counter)
    over: list[tuple[Moment, Fault]] = field(default_factory=list)  # when each fault was over

    def run(self) -> Verdict:
        """All of it, from the main thread: what it starts ends with the thread that started it."""
        chance = random.Random(self.seed)
        load = Load(self.scenario, chance)
        injector = FaultInjector(
            self.scenario, self.server, self.node, load, self.amqp_url, self.before_database, self.before_broker, chance
        )
        for _ in range(2):
            self.scenario.start_worker(modules=self.modules, env=self.environment)
        try:
            with Watch(self.scenario) as watch:
                self._faults(load, injector, watch)
                unfinished = self._calm(load, injector, watch)
                grown, measured = self._grown(watch)
            return self._verdict(load, watch, unfinished, grown, measured)
        finally:
            injector.thaw(all_of_them=True)
            load.end()

    def _faults(self, load: Load, injector: FaultInjector, watch: Watch) -> None:
        began, due = time.monotonic(), list(self.plan)
        while time.monotonic() < began + self.length or due:
            self.scenario.restart_ended_workers()
            load.tend(watch.open)
            injector.thaw()
            if due and time.monotonic() >= began + due[0].at:
                fault = due.pop(0)
                if not self._do(fault, injector, began) and time.monotonic() < began + self.length + CALM:
                    due.insert(0, fault._replace(at=time.monotonic() - began + AGAIN))
            time.sleep(0.05)

    def _do(self, fault: Fault, injector: FaultInjector, began: float) -> int:
        at = time.monotonic() - began
        try:
            hit = injector.inject(fault)
        except ERRORS as error:
            hit = 0
            self.say(f"{at:7.1f} s  {fault.kind} could not be done: {str(error).splitlines()[0]}")
        self.done[fault.kind] += bool(hit)
        self.over.append((Moment.now(), fault))
        self.say(f"{at:7.1f} s  {fault.kind}: {hit} hit")
        return hit

    def _calm(self, load: Load, injector: FaultInjector, watch: Watch) -> list[Any]:
        """No more faults: everything ends. What has not, is given back."""
        injector.thaw(all_of_them=True)
        for process in load.senders.values():
            process.kill()
        began = time.monotonic()

        def ended() -> bool:
            self.scenario.restart_ended_workers()
            try:
                return load.finish() and not self._unfinished()
            except ERRORS:
                return False

        wait_until(ended, CALM, pause=0.2)
        self.say(f"everything ended {time.monotonic() - began:.1f} s after the last fault")
        return self._unfinished()

    def _unfinished(self) -> list[Any]:
        """What is still open; messages of strangers may lie in RabbitMQ that nobody has heard of."""
        waiting = self.scenario.ready_messages("foreign") if self.node.running() else 0
        return self.scenario.sql(
            "SELECT name, state::text, total, succeeded, failed, skipped, retrying FROM callboard.jobs"
            " WHERE finished_at IS NULL AND (succeeded + failed + skipped < total OR standing_on IS NULL)"
            " UNION ALL SELECT 'messages of strangers', '', %s, 0, 0, 0, 0 WHERE %s > 0",
            waiting,
            waiting,
        )

    # What it comes to ------------------------------------------------------------------------------------------------

    def _verdict(
        self, load: Load, watch: Watch, unfinished: list[Any], grown: list[str], measured: list[str]
    ) -> Verdict:
        with connect(self.scenario.database_url) as conn:
            drift = queries.run(conn, queries.verify())["drift"]
        found = load.found()
        recoveries = [(watch.recovered(at), fault.kind) for at, fault in self.over]
        twice = self.scenario.run_log.conn.execute(
            "SELECT coalesce(sum(n - 1), 0) FROM (SELECT count(*) AS n FROM runs GROUP BY job, item, attempt) AS r"
        ).fetchone()
        return Verdict(
            self.seed, self.done, account(*load.wanted(found), found), drift, watch.wrong, unfinished, grown,
            measured, int(twice[0]) if twice else 0, max(recoveries, default=(0.0, "")),
        )  # fmt: skip

    def _grown(self, watch: Watch) -> tuple[list[str], list[str]]:
        """What grew or is more than it may be, and what was measured."""
        spared = self.scenario.workers[1]
        pids = (spared.pid, *spared.children())
        half = self.over[len(self.over) // 2][0].seconds if self.over else 0.0
        kept = {pid: [s for s in watch.samples[pid] if s.moment > half] for pid in pids}
        grown = [line for samples in kept.values() for line in growth(samples)]
        measured = [_use(samples) for samples in kept.values() if samples]
        limits = {
            "connections to PostgreSQL": (self._backends, 2 * TO_POSTGRES),
            "connections to RabbitMQ": (lambda: len(self.before_broker), 2 * TO_RABBITMQ),
        }
        for name, (count, most) in limits.items():
            wait_until(lambda: count() <= most, CALM, pause=0.5)
            measured.append(f"{name} in the end: {count()}")
            grown += [f"{name}: {count()}, more than {most}"] if count() > most else []
        wait_until(lambda: not self._dead_rows(), CALM, pause=1)
        return grown + self._dead_rows(), measured

    def _backends(self) -> int:
        """Sessions of workers: those that came by the proxy."""
        return len(self.before_database)

    def _dead_rows(self) -> list[str]:
        rows = self.scenario.sql(
            "SELECT relname, n_dead_tup, n_live_tup FROM pg_stat_user_tables WHERE schemaname = 'callboard'"
            " AND n_dead_tup > %s + %s * n_live_tup",
            DEAD,
            DEAD_SHARE,
        )
        return [f"{table}: {dead} dead rows beside {live}" for table, dead, live in rows]


def _use(samples: Sequence[Any]) -> str:
    first, last = samples[0], samples[-1]
    return (
        f"process {first.pid} in {last.moment - first.moment:.0f} s: {first.mib:.0f} to {last.mib:.0f} MiB,"
        f" {first.threads} to {last.threads} threads, {first.files} to {last.files} files"
    )
