"""All endpoints of the API, as /api/v1 and /api serve them and as the OpenAPI document describes them."""

from callboard.web import actions, answers, bulk, events, items, jobs, queues, submissions, tokens, workers
from callboard.web.endpoint import LINES, Endpoint
from callboard.web.parameters import DryRun, Page

ENDPOINTS: list[Endpoint] = [
    Endpoint("GET", "/jobs", jobs.jobs, answers.Jobs, query=jobs.JobQuery),
    Endpoint(
        "POST",
        "/jobs",
        submissions.submit,
        answers.Job,
        body=submissions.NewJob,
        scope="submit",
        status=201,
        consumes=("application/json", LINES),
        replays=True,
    ),
    Endpoint("GET", "/jobs/counts", jobs.counts, answers.JobCounts, query=jobs.Tenant),
    Endpoint("GET", "/jobs/{job}", jobs.job, answers.Job, shared=True),
    Endpoint("PATCH", "/jobs/{job}", actions.limit, answers.Job, body=actions.Limits, scope="control"),
    Endpoint("DELETE", "/jobs/{job}", actions.delete, None, query=DryRun, scope="control", status=204),
    Endpoint("GET", "/jobs/{job}/events", events.job, None, shared=True, produces=events.TYPES),
    Endpoint(
        "POST",
        "/jobs/{job}/items",
        submissions.add,
        answers.Job,
        query=submissions.AddedTo,
        body=submissions.NewItems,
        scope="submit",
        consumes=("application/json", LINES),
    ),
    Endpoint("POST", "/jobs/{job}/seal", submissions.seal, answers.Job, scope="submit"),
    Endpoint("GET", "/jobs/{job}/items", items.items, answers.Items, query=items.ItemFilter),
    Endpoint("GET", "/jobs/{job}/items/{item}", items.item, answers.ItemWithAttempts),
    Endpoint("GET", "/jobs/{job}/errors", jobs.errors, answers.Errors),
    Endpoint("GET", "/jobs/{job}/errors/{error}", jobs.error, answers.ErrorWithTraceback),
    Endpoint("GET", "/jobs/{job}/actions", jobs.actions, answers.Actions, query=Page),
    Endpoint("GET", "/jobs/{job}/callbacks", jobs.callbacks, answers.Callbacks),
    Endpoint("POST", "/jobs/actions", bulk.act, answers.BulkAction, body=bulk.ManyJobs, scope="control"),
    Endpoint(
        "POST",
        "/jobs/{job}/cancel",
        actions.cancel,
        answers.Job,
        query=DryRun,
        body=actions.Cancel,
        scope="control",
    ),
    Endpoint("POST", "/jobs/{job}/pause", actions.pause, answers.Job, scope="control"),
    Endpoint("POST", "/jobs/{job}/resume", actions.resume, answers.Job, scope="control"),
    Endpoint(
        "POST",
        "/jobs/{job}/retry",
        actions.retry,
        answers.Job,
        query=DryRun,
        body=actions.Retry,
        scope="control",
    ),
    Endpoint("GET", "/events", events.jobs, None, query=jobs.JobQuery, produces=events.TYPES),
    Endpoint(
        "GET", "/workers", workers.workers, answers.Workers, query=workers.WorkerFilter, for_all_tenants=True
    ),
    Endpoint("GET", "/queues", queues.queues, answers.Queues, for_all_tenants=True),
    Endpoint(
        "GET", "/queues/{queue}/dead-letters", queues.dead_letters, answers.DeadLetters, for_all_tenants=True
    ),
    Endpoint(
        "POST",
        "/queues/{queue}/put-back",
        queues.put_back,
        answers.Moved,
        body=queues.PutBack,
        scope="control",
        for_all_tenants=True,
    ),
    Endpoint("GET", "/tokens", tokens.tokens, answers.Tokens, query=Page, scope="admin"),
    Endpoint(
        "POST",
        "/tokens",
        tokens.create,
        answers.MadeToken,
        body=tokens.NewToken,
        scope="admin",
        status=201,
        problems={404: "There is no such job, or not for this login."},
    ),
    Endpoint("DELETE", "/tokens/{token}", tokens.revoke, None, scope="admin", status=204),
]
