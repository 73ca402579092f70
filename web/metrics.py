"""Metrics of the database for Prometheus. Counters are sums over rows, so all web processes report the same values."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response

from callboard.sql.reads import queries
from callboard.sql.states import JOB_STATES
from callboard.web.endpoint import Call, NoBody
from callboard.web.parameters import NoQuery

#: The counters of items: column and help text.
COUNTERS = {"retries": "Failed attempts that were retried.", "crashes": "Worker deaths that were charged to items."}
#: The gauges from the one row of facts: column, name and help text. Times are 0 if nothing waits.
FACTS = {
    "oldest_pending": ("oldest_pending_job_seconds", "Age of the oldest job that may start but has not."),
    "publish_delay": ("publish_delay_seconds", "How long the oldest due message has been waiting for a publisher."),
    "heartbeat_age": ("worker_heartbeat_age_seconds", "Age of the oldest heartbeat of a worker that has not ended."),
    "sweep_overdue": ("sweep_overdue_seconds", "Seconds since the lease of the sweep expired; negative: it is valid."),
    "workers": ("workers", "Living worker processes."),
    "threads": ("worker_threads", "Their threads."),
    "held": ("worker_held_items", "Items that workers run or have prefetched."),
}


class DatabaseMetrics(Collector):
    """Rows of the database as metrics."""

    def __init__(self, items: Iterable[Mapping[str, Any]], facts: Mapping[str, Any], watchers: int) -> None:
        self.items, self.facts, self.watchers = list(items), facts, watchers

    def collect(self) -> Iterable[Metric]:
        """Yield all metrics."""
        names = ["actor", "queue"]
        ended = CounterMetricFamily(
            "callboard_items_ended", "Items that ended; a retried item counts at each end.", labels=[*names, "state"]
        )
        still = GaugeMetricFamily("callboard_items_open", "Items that have not ended.", labels=[*names, "state"])
        counters = {
            name: CounterMetricFamily(f"callboard_item_{name}", help_text, labels=names)
            for name, help_text in COUNTERS.items()
        }
        for row in self.items:
            labels = [row["actor"], row["queue"]]
            for state in ("succeeded", "failed", "skipped"):
                ended.add_metric([*labels, state], row[state])
            for state in ("pending", "queued", "running", "retrying"):
                still.add_metric([*labels, state], row[state])
            for name, counter in counters.items():
                counter.add_metric(labels, row[name])
        jobs = GaugeMetricFamily("callboard_jobs", "Jobs by state.", labels=["state"])
        for state in JOB_STATES:
            jobs.add_metric([state], (self.facts["jobs"] or {}).get(state, 0))
        yield from (jobs, still, ended, *counters.values())
        for field, (name, help_text) in FACTS.items():
            yield GaugeMetricFamily(f"callboard_{name}", help_text, value=self.facts[field] or 0.0)
        yield GaugeMetricFamily(
            "callboard_watchers", "Streams of events that this web process serves.", value=self.watchers
        )


async def metrics(call: Call[NoQuery, NoBody]) -> Response:
    """Get metrics for Prometheus."""
    items, facts = await call.read(queries.metric_items()), await call.read(queries.metric_facts())
    watchers = sum(events.watchers for events in call.request.app.state.events.values())
    registry = CollectorRegistry()
    registry.register(DatabaseMetrics(items, facts, watchers))
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
