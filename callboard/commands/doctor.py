"""`callboard doctor`: checks all parts, and says what is wrong and what to do about it."""

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple

import psycopg
import typer
from rich.text import Text

from callboard.commands import output
from callboard.commands.database import reach
from callboard.commands.errors import REFUSED, CommandError, explain
from callboard.commands.output import AsJson
from callboard.middleware.ping import PING
from callboard.middleware.rabbitmq import confirms, queue_admin
from callboard.middleware.rabbitmq.queue_admin import NoAnswer
from callboard.middleware.submission import item_encoding
from callboard.sql import migrate, settings
from callboard.sql.errors import REFUSALS
from callboard.sql.migrate import SchemaError
from callboard.sql.pool import Conn, broker_addresses, connect, database_address
from callboard.sql.reads import queries
from callboard.sql.reads.job_filter import JobFilter
from callboard.sql.reads.job_view import OPEN, SUBMITTING
from callboard.sql.settings import NotConfigured
from callboard.sql.states import JOB_FINAL
from callboard.sql.writes import actions, submission
from callboard.sql.writes.requests import NotPossible, Requester
from callboard.words import count

app = typer.Typer()

#: Maximum difference in seconds between the clocks of this machine and of the database.
CLOCK_SECONDS = 2.0
#: Seconds for which a lock may make others wait.
LOCK_SECONDS = 5.0
#: Seconds between two reads of a ping's job.
LOOK_SECONDS = 0.02
#: Maximum number of stalled jobs that are listed.
STALLED = 5
OK, NOTE, WRONG = "ok", "note", "wrong"
STYLES = {OK: "green", NOTE: "yellow", WRONG: "bold red"}
ASKED = Requester("cli", "doctor")


class Finding(NamedTuple):
    """The result of a check: the part, its state (ok, note or wrong), what was found, and what to do."""

    about: str
    state: str
    found: str
    do: str = ""


@app.command()
def doctor(
    *,
    ping: Annotated[bool, typer.Option(help="Send a message through every queue that a worker consumes.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for each of these messages.")] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Find out why nothing happens: check database, broker, queues, workers and jobs. Exit 1 if something is wrong.

    It changes nothing, except that it makes one job of one item per queue, and deletes it.
    """
    findings = []
    for finding in examine(timeout if ping else None):
        findings.append(finding)
        if not as_json:
            _print(finding)
    wrong = [finding for finding in findings if finding.state == WRONG]
    if as_json:
        output.document({"findings": [finding._asdict() for finding in findings], "wrong": len(wrong)})
    elif not wrong:
        typer.echo("nothing is wrong")
    raise typer.Exit(1 if wrong else 0)


def examine(timeout: float | None) -> Iterator[Finding]:
    """Yield the findings, in the order in which a message passes the parts. `timeout`: seconds for a ping; None: no
    pings.
    """
    yield from _settings()
    addresses = broker_addresses()
    try:
        url = database_address()
        with reach(url):
            conn = connect(url)
        with conn:
            yield from _database(conn)
            yield from _broker(addresses)
            locks = queries.run(conn, queries.long_locks(LOCK_SECONDS))
            yield from map(_lock, locks)
            if any(lock["whole"] for lock in locks):
                return  # all reads of that table would wait, too
            yield from _workers(conn)
            yield from _queues(conn, addresses)
            yield from _jobs(conn)
            if timeout is not None:
                yield from _pings(conn, timeout)
    except NotConfigured as error:
        yield Finding("database", WRONG, "no address", str(error))
    except CommandError as error:
        found, _, do = str(error).partition("; ")
        yield Finding("database", WRONG, found, do)
        yield from _broker(addresses)
    except REFUSED as error:
        found, _, do = str(explain(error)).rpartition("; ")
        yield Finding("database", WRONG, found, do)
    except SchemaError as error:
        found, _, do = str(error).partition(": ")
        yield Finding("schema", WRONG, found, do)


def _settings() -> Iterator[Finding]:
    for name in settings.unknown():
        yield Finding("settings", NOTE, f"{name} is not a setting", "see `callboard config` for the settings")
    yield Finding("settings", OK, "all values are valid")  # main() has checked them


def _database(conn: Conn) -> Iterator[Finding]:
    began = time.perf_counter()
    server = queries.run(conn, queries.server())
    took = (time.perf_counter() - began) * 1000
    version = conn.info.server_version
    yield Finding("database", OK, f"PostgreSQL {version // 10000}, answers in {took:.1f} ms")
    try:
        migrate.check_rights(conn)
    except SchemaError as error:
        found, _, do = str(error).partition(": ")
        yield Finding("rights", WRONG, found, do)
    warning = migrate.check(conn)
    yield Finding("schema", NOTE if warning else OK, warning or "fits this code")
    apart = abs((datetime.now(UTC) - server["now"]).total_seconds())
    if apart > CLOCK_SECONDS:
        yield Finding(
            "clock", NOTE, f"this machine and the database are {apart:.0f} s apart",
            "set the clocks: limits and times use the database's clock",
        )  # fmt: skip
    if server["read_only"]:
        yield Finding("database", WRONG, *REFUSALS[psycopg.errors.ReadOnlySqlTransaction])
    if conn.info.backend_pid != server["pid"]:
        yield _pooler()


def _lock(lock: dict[str, Any]) -> Finding:
    what = f"keeps {count(lock['waiting'], 'session')} waiting" if lock["waiting"] else "has locked jobs or items"
    if lock["whole"]:
        what = "blocks a whole table for all others"
    do = f"let its transaction end, or end it: SELECT pg_terminate_backend({lock['pid']})"
    return Finding("locks", WRONG, f"{lock['who']}, {what}", do)


def _pooler() -> Finding:
    """Return the finding about a pooler, which is there if the server process is another than at the connection's
    start.
    """
    if settings.PREPARE.get():
        do = "if it is PgBouncer before 1.22, or has max_prepared_statements = 0: set CALLBOARD_PREPARE=off"
        return Finding("pooler", NOTE, "there is one, and prepared statements are on", do)
    return Finding("pooler", OK, "there is one, and prepared statements are off")


def _broker(addresses: str) -> Iterator[Finding]:
    if not addresses:
        yield Finding(
            "broker", NOTE, "AMQP_URL is not set", "set it, unless one process both sends and runs everything"
        )
        return
    for address in addresses.split(";"):
        began = time.perf_counter()
        try:
            with queue_admin.connected(address):
                took = (time.perf_counter() - began) * 1000
        except NoAnswer as error:
            yield Finding("broker", WRONG, f"can't reach {error}", queue_admin.connect_advice(error))
        else:
            place = confirms.address(queue_admin.parameters_of(address))
            yield Finding("broker", OK, f"{place} takes a connection in {took:.0f} ms")


def _workers(conn: Conn) -> Iterator[Finding]:
    alive, _ = queries.run(conn, queries.workers(state="alive", limit=500))
    if not alive:
        yield Finding("workers", WRONG, "none is alive", "start one: dramatiq YOUR_MODULE")
        return
    threads = sum(worker["threads"] for worker in alive)
    yield Finding("workers", OK, f"{count(len(alive), 'process', 'processes')}, {threads} threads")
    for worker in alive:
        if worker["trouble"]:
            do = queue_admin.refusal_advice(worker["trouble"])
            yield Finding(f"worker {worker['id']}", WRONG, worker["trouble"], do)
    if len(releases := sorted({worker["release"] for worker in alive})) > 1:
        yield Finding("workers", NOTE, f"of several releases: {', '.join(releases)}")


def _queues(conn: Conn, addresses: str) -> Iterator[Finding]:
    known = queries.run(conn, queries.queues())
    rows, unknown = queue_admin.with_depths(addresses, known)
    alive, _ = queries.run(conn, queries.workers(state="alive", limit=500))
    for row in rows:  # if RabbitMQ's numbers are missing, `_broker` has reported why
        having = next((worker["id"] for worker in alive if row["name"] in worker["queues"]), None)
        yield from _queue(row, missing=unknown is None and row["ready"] is None, worker=having)


def _queue(row: dict[str, Any], *, missing: bool, worker: int | None = None) -> Iterator[Finding]:
    """Yield what is found of a queue. `worker`: a living worker that has it, or None."""
    about = f"queue {row['name']}"
    if missing:
        yield Finding(about, NOTE, "RabbitMQ does not have it", "a worker that has its actors declares it")
    elif row["dead"] is None and row["ready"] is not None:
        lost = "RabbitMQ does not have its dead-letter queue, so failed messages leave no dead letters"
        yield Finding(about, NOTE, lost, "restart one of its workers, which declares it")
    if row["unserved"] and row["pending"]:
        yield Finding(
            about, NOTE, f"no living worker has {', '.join(row['unserved'])}",
            "if jobs need it, start a worker with its module",
        )  # fmt: skip
    if row["dead"]:
        yield Finding(
            about, NOTE, f"{count(row['dead'], 'dead letter')}",
            f"look at the errors of their jobs, then `callboard retry JOB` or `callboard put-back {row['name']}`",
        )  # fmt: skip
    if row["ready"] and not row["consumers"]:
        ready = count(row["ready"], "message is", "messages are")
        do = (
            "start a worker"
            if worker is None
            else f"look at worker {worker}, which has this queue and can't consume it"
        )
        yield Finding(about, WRONG, f"{ready} ready, and it has no consumer", do)
    else:
        ready = "" if row["ready"] is None else f"{row['ready']:,} ready, "
        yield Finding(about, OK, f"{ready}{row['pending']:,} items wait as rows")


def _jobs(conn: Conn) -> Iterator[Finding]:
    stalled, following = queries.run(conn, queries.jobs(JobFilter(stalled=True), limit=STALLED))
    for job in stalled:
        # A stall with a known end is wanted; so is a job that waits for more items.
        asked = job["stalled_until"] or job["stalled"] in (OPEN, SUBMITTING)
        state, do = (NOTE, "") if asked else (WRONG, f"see `callboard status {job['id']}`")
        yield Finding(f"job {job['id']}", state, f"{job['name']}: {job['stalled']}", do)
    if not stalled:
        yield Finding("jobs", OK, "none is stalled")
    elif following is not None:
        yield Finding("jobs", NOTE, "more are stalled", "callboard jobs is:stalled")


def _pings(conn: Conn, timeout: float) -> Iterator[Finding]:
    alive, _ = queries.run(conn, queries.workers(state="alive", limit=500))
    for queue in sorted({queue for worker in alive for queue in worker["queues"]}):
        trouble = next((one["trouble"] for one in alive if queue in one["queues"] and one["trouble"]), None)
        yield _ping(conn, queue, trouble, timeout)


def _ping(conn: Conn, queue: str, trouble: str | None, timeout: float) -> Finding:
    """Send a job of one item through a queue, time its hops, and delete it."""
    about, began = f"ping through {queue}", time.monotonic()
    made = submission.create_job(
        conn, name=f"doctor: ping through {queue}", key=None, tenant="", actor=PING, queue=queue, metadata={},
        created_by="doctor",
    )  # fmt: skip
    submission.store_chunk(conn, made.job, 0, [item_encoding.encode(0, [])], keyed=False)
    submission.seal_job(conn, made.job)
    stored = time.monotonic()
    job: dict[str, Any] = {"state": "pending"}
    while job["state"] not in JOB_FINAL and time.monotonic() - stored < timeout:
        time.sleep(LOOK_SECONDS)
        found = queries.run(conn, queries.job(made.job))
        job = {"state": "cancelled"} if found is None else found  # None: somebody has deleted the job
    seen = time.monotonic()
    try:
        if job["state"] != "completed":
            return _unanswered(conn, made.job, about, job, trouble, timeout)
        (item,), _ = queries.run(conn, queries.items(made.job))
        created, started, finished = (
            datetime.fromisoformat(job["created_at"]), datetime.fromisoformat(item["started_at"]),
            datetime.fromisoformat(job["finished_at"]),
        )  # fmt: skip
        hops = {
            "row": stored - began, "publish and delivery": (started - created).total_seconds() - (stored - began),
            "outcome": (finished - started).total_seconds(),
            "read": (seen - began) - (finished - created).total_seconds(),
        }  # fmt: skip
        return Finding(about, OK, ", ".join(f"{name} {max(took, 0) * 1000:.0f} ms" for name, took in hops.items()))
    finally:
        with suppress(NotPossible):
            actions.delete(conn, made.job, ASKED)


def _unanswered(
    conn: Conn, number: int, about: str, job: dict[str, Any], trouble: str | None, timeout: float
) -> Finding:
    # The job's own `stalled` is not used, because no worker announces the actor of pings.
    actions.cancel(conn, number, ASKED, reason="no answer in time")
    where = "its row was not published" if job.get("pending") else "its message was published and did not come back"
    why = f": {trouble}" if trouble else ""
    do = "look at the log of a worker that has this queue; it may be busy with long items, or of an older release"
    return Finding(
        about, WRONG, f"no answer within {timeout:g} s, {where}{why}", queue_admin.refusal_advice(trouble or "") or do
    )


def _print(finding: Finding) -> None:
    line = Text(f"{finding.state:<6}", style=STYLES[finding.state])
    line.append(f"{finding.about}: ", style="bold").append_text(output.plain(finding.found))
    output.console().print(line)
    if finding.do:
        output.console().print(Text("       → ").append_text(output.plain(finding.do)))
