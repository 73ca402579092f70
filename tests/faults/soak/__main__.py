"""`python -m tests.faults.soak --minutes 15 --seed N`: work under faults, then a table; exit code 1 if any is wrong.

`--plan` prints the faults of a seed and does nothing.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import psycopg

from callboard.commands.services import Server, ends_on_sigterm
from callboard.sql.migrate import migrate
from tests.faults.rig.run_log import RUN_LOG, RunLog
from tests.faults.rig.scenario import make_scenario
from tests.faults.soak.plan import KINDS, plan
from tests.faults.soak.run import Soak, proxies
from tests.support.nodes import Node

#: A server that is killed shall find its data; autovacuum looks every ten seconds, so that a short soak sees it too.
SETTINGS = {"max_connections": "100", "autovacuum_naptime": "10s"}


def say(line: str) -> None:
    print(line, flush=True)


def soak(made: Soak) -> int:
    """Run it and print what it comes to; the exit code."""
    verdict = made.run()
    say("\n".join(["", *verdict.table()]))
    return 1 if verdict.problems() else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--plan", action="store_true", help="print the faults, do nothing")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="KIND")
    parser.add_argument("--keep", type=Path, help="a folder for logs and data, kept")
    given = parser.parse_args()
    faults = plan(given.seed, given.minutes * 60, kinds=given.kinds)
    say("\n".join([f"seed {given.seed}, {given.minutes:g} minutes", *(fault.line() for fault in faults), ""]))
    if given.plan:
        return 0
    with ends_on_sigterm(), tempfile.TemporaryDirectory() as name:
        folder = given.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        with (
            Node(folder / "rabbitmq") as node,
            Server(folder / "faulty", settings=SETTINGS) as server,
            Server(folder / "steady") as steady,
            proxies({"DATABASE_URL": server.url, "AMQP_URL": node.url, RUN_LOG: str(folder / "runs")}) as by,
            psycopg.connect(steady.url, autocommit=True) as conn,
        ):
            migrate(server.url)
            environment, database, broker = by
            with make_scenario(RunLog(conn, folder / "runs"), environment, server.url, folder) as scenario:
                made = Soak(
                    scenario, server, node, node.url, database, broker, given.seed, faults, given.minutes * 60, say
                )
                return soak(made)


if __name__ == "__main__":
    sys.exit(main())
