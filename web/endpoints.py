"""All endpoints of the API, as /api/v1 and /api serve them and as the OpenAPI document describes them."""

from typing import Any

from callboard.web import (
    actions,
    answers,
    bulk,
    charts,
    events,
    exports,
    items,
    jobs,
    metrics,
    new_job,
    queues,
    submissions,
    tokens,
    workers,
)
from callboard.web.endpoint import LINES, Endpoint
from callboard.web.parameters import DryRun, Page


def _get(path: str, handler: Any, answer: Any, **more: Any) -> Endpoint:
    return Endpoint("GET", path, handler, answer, **more)


def _post(scope: str, path: str, handler: Any, answer: Any, **more: Any) -> Endpoint:
    return Endpoint("POST", path, handler, answer, scope=scope, **more)


#: The media types of a body of items.
_ITEMS = ("application/json", LINES)

ENDPOINTS: list[Endpoint] = [
    _get("/jobs", jobs.jobs, answers.Jobs, query=jobs.JobQuery),
    _post(
        "submit", "/jobs", submissions.submit, answers.Job, body=new_job.NewJob, status=201, consumes=_ITEMS,
        replays=True,
    ),
    _get("/jobs/counts", jobs.counts, answers.JobCounts),
    _get("/jobs/{job}", jobs.job, answers.Job, shared=True),
    Endpoint("PATCH", "/jobs/{job}", actions.limit, answers.Job, body=actions.LimitChanges, scope="control"),
    Endpoint("DELETE", "/jobs/{job}", actions.delete, None, query=DryRun, scope="control", status=204),
    _get("/jobs/{job}/events", events.job, None, shared=True, produces=events.TYPES),
    _post(
        "submit", "/jobs/{job}/items", submissions.add, answers.Job, query=submissions.AddQuery,
        body=submissions.NewItems, consumes=_ITEMS,
    ),
    _post(
        "submit", "/jobs/{job}/run-again", submissions.run_again, answers.Job, body=submissions.RunAgain, status=201,
        replays=True,
    ),
    _post("submit", "/jobs/{job}/seal", submissions.seal, answers.Job),
    _get("/jobs/{job}/items", items.items, answers.Items, query=items.ItemFilter),
    _get("/jobs/{job}/items/{item}", items.item, answers.ItemWithAttempts),
    _get("/jobs/{job}/export", exports.export, None, query=exports.ExportQuery, produces=tuple(exports.TYPES.values())),
    _get("/jobs/{job}/errors", jobs.errors, answers.Errors),
    _get("/jobs/{job}/errors/{error}", jobs.error, answers.ErrorWithTraceback),
    _get("/jobs/{job}/actions", jobs.actions, answers.Actions, query=Page),
    _get("/jobs/{job}/callbacks", jobs.callbacks, answers.Callbacks),
    _get("/jobs/{job}/samples", charts.samples, answers.Samples),
    _get("/jobs/{job}/lanes", charts.lanes, answers.Lanes),
    _post("read", "/jobs/{job}/verify", charts.verify, answers.Recount),
    _post("control", "/jobs/actions", bulk.act, answers.BulkAction, body=bulk.ManyJobs),
    _post("control", "/jobs/{job}/cancel", actions.cancel, answers.Job, query=DryRun, body=actions.Cancel),
    _post("control", "/jobs/{job}/pause", actions.pause, answers.Job),
    _post("control", "/jobs/{job}/resume", actions.resume, answers.Job),
    _post("control", "/jobs/{job}/retry", actions.retry, answers.Job, query=DryRun, body=actions.Retry),
    _get("/events", events.jobs, None, query=jobs.JobQuery, produces=events.TYPES),
    _get("/workers", workers.workers, answers.Workers, query=workers.WorkerFilter, for_all_tenants=True),
    _get("/queues", queues.queues, answers.Queues, for_all_tenants=True),
    _get("/queues/{queue}/dead-letters", queues.dead_letters, answers.DeadLetters, for_all_tenants=True),
    _post(
        "control", "/queues/{queue}/put-back", queues.put_back, answers.Moved, body=queues.PutBack, for_all_tenants=True
    ),
    _get("/tokens", tokens.tokens, answers.Tokens, query=Page, scope="admin"),
    _post(
        "admin", "/tokens", tokens.create, answers.MadeToken, body=tokens.NewToken, status=201,
        problems={404: "There is no such job, or this login may not see it."},
    ),
    Endpoint("DELETE", "/tokens/{token}", tokens.revoke, None, scope="admin", status=204),
]  # fmt: skip

#: Outside of the API, because Prometheus reads it at the root.
METRICS = Endpoint("GET", "/metrics", metrics.metrics, None, for_all_tenants=True)
