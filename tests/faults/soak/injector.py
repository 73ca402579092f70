"""Has the faults of a soak happen. Each says how many it hit; one that hit nothing did not happen."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import pika
import psycopg

from callboard.commands.services import NotStarted, Server
from callboard.sql.pool import connect
from tests.faults.rig.proxy import Proxy
from tests.faults.rig.scenario import Scenario
from tests.faults.soak.load import Load
from tests.faults.soak.plan import Fault
from tests.support.nodes import Node
from tests.support.workers import wait_until

QUEUE = "default"
#: Seconds for PostgreSQL to be back.
REVIVAL = 300.0


@dataclass
class FaultInjector:
    """See the module. `amqp_url` goes to RabbitMQ by no proxy."""

    scenario: Scenario
    server: Server
    node: Node
    load: Load
    amqp_url: str
    before_database: Proxy
    before_broker: Proxy
    chance: random.Random
    thawing: dict[int, float] = field(default_factory=dict)  # process group -> when it is continued

    def inject(self, fault: Fault) -> int:
        """Have it happen; how many processes, connections or messages it hit."""
        inject: Callable[[Fault], int] = getattr(self, "_" + fault.kind.replace(" ", "_"))
        return inject(fault)

    def thaw(self, *, all_of_them: bool = False) -> None:
        """Continue the workers that stood still for long enough."""
        for group, due in list(self.thawing.items()):
            if all_of_them or time.monotonic() >= due:
                del self.thawing[group]
                _signal_group(group, signal.SIGCONT)

    # Workers ---------------------------------------------------------------------------------------------------------

    def _worker_killed(self, fault: Fault) -> int:
        worker = self.scenario.workers[fault.worker]
        hit = int(worker.process.running())
        worker.kill()
        return hit

    def _process_killed(self, fault: Fault) -> int:
        found = (
            self.scenario.sql(
                "SELECT pid FROM callboard.workers WHERE pid = ANY(%s)", self.scenario.workers[fault.worker].children()
            )
            if self.scenario.workers[fault.worker].process.running()
            else []
        )
        for (pid,) in found:
            os.kill(pid, signal.SIGKILL)
        return len(found)

    def _worker_asked_to_stop(self, fault: Fault) -> int:
        return self._tell(fault, signal.SIGTERM)

    def _worker_told_to_reload(self, fault: Fault) -> int:
        return self._tell(fault, signal.SIGHUP)

    def _tell(self, fault: Fault, number: signal.Signals) -> int:
        worker = self.scenario.workers[fault.worker]
        if not worker.process.running():
            return 0
        worker.process.send(number)
        return 1

    def _worker_frozen(self, fault: Fault) -> int:
        worker = self.scenario.workers[fault.worker]
        if not worker.process.running():
            return 0
        self.thawing[worker.pid] = time.monotonic() + fault.seconds
        return _signal_group(worker.pid, signal.SIGSTOP)

    # PostgreSQL ------------------------------------------------------------------------------------------------------

    def _postgres_restarted(self, fault: Fault) -> int:
        self.server.stop()
        self._revive()
        return 1

    def _postgres_killed(self, fault: Fault) -> int:
        self.server.kill()
        self._revive()
        return 1

    def _revive(self) -> None:
        """Start it as often as it takes: while a session of the one before is still there, it refuses."""

        def started() -> bool:
            with suppress(NotStarted):
                self.server.start()
            return self.server.running()

        assert wait_until(started, REVIVAL, pause=0.5)

    def _backends_terminated(self, fault: Fault) -> int:
        with connect(self.scenario.database_url) as conn:
            row = conn.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ).fetchone()
        return int(row[0]) if row else 0

    def _database_cut_off(self, fault: Fault) -> int:
        return self.before_database.cut()

    # RabbitMQ --------------------------------------------------------------------------------------------------------

    def _rabbitmq_restarted(self, fault: Fault) -> int:
        self.node.stop()
        self.node.start()
        return 1

    def _connections_closed(self, fault: Fault) -> int:
        vhost = unquote(urlsplit(self.amqp_url).path[1:])
        count = len(self.before_broker)
        self.node.ctl("close_all_connections", "--vhost", vhost, "closed by the soak")
        return count

    def _broker_cut_off(self, fault: Fault) -> int:
        return self.before_broker.cut()

    def _queue_purged(self, fault: Fault) -> int:
        return self._ask(lambda channel: int(channel.queue_purge(QUEUE).method.message_count))

    def _queue_deleted(self, fault: Fault) -> int:
        def delete(channel: "pika.adapters.blocking_connection.BlockingChannel") -> int:
            channel.queue_delete(QUEUE)
            return 1

        return self._ask(delete)

    def _ask(self, question: Callable[["pika.adapters.blocking_connection.BlockingChannel"], int]) -> int:
        connection = pika.BlockingConnection(pika.URLParameters(self.amqp_url))
        try:
            return question(connection.channel())
        except pika.exceptions.ChannelClosedByBroker:
            return 0  # it was deleted just before, and nobody has declared it again
        finally:
            connection.close()

    # Submitters ------------------------------------------------------------------------------------------------------

    def _submitter_killed(self, fault: Fault) -> int:
        submitting = [one.process for one in self.load.submissions if one.process is not None]
        running = [process for process in submitting if process.running()] or self.load.processes()
        if not running:
            return 0
        self.chance.choice(running).kill()
        return 1


def _signal_group(group: int, number: signal.Signals) -> int:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return 0
    return 1


ERRORS = (psycopg.Error, OSError, pika.exceptions.AMQPError)
