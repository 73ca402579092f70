"""All pages and their forms."""

from typing import Any

from callboard.web import actions, submissions
from callboard.web.pages import board, docs, forms, item, job, many, queues, share, tokens, workers
from callboard.web.pages.forms import form
from callboard.web.pages.page import PageEndpoint, Parts
from callboard.web.parameters import Page
from callboard.web.queues import PutBack
from callboard.web.tokens import NewToken


def _post(path: str, handler: Any, **more: Any) -> PageEndpoint:
    return PageEndpoint("POST", path, handler, None, scope="control", **more)


PAGES = [
    PageEndpoint("GET", "/", board.board, None, query=board.BoardQuery, together=True),
    PageEndpoint("GET", "/docs", docs.docs, None),
    PageEndpoint("GET", "/jobs/{job}", job.job, None, query=job.JobQuery, together=True),
    PageEndpoint("GET", "/jobs/{job}/cancel", forms.confirm_cancel, None, query=Parts, scope="control"),
    PageEndpoint("GET", "/jobs/{job}/delete", forms.confirm_delete, None, query=Parts, scope="control"),
    PageEndpoint("GET", "/jobs/{job}/items/{item}", item.item, None, query=item.ItemQuery, together=True),
    PageEndpoint("GET", "/workers", workers.workers, None, query=workers.WorkersQuery, for_all_tenants=True),
    PageEndpoint("GET", "/queues", queues.queues, None, query=Parts, for_all_tenants=True),
    PageEndpoint("GET", "/queues/{queue}/dead-letters", queues.dead_letters, None, query=Parts, for_all_tenants=True),
    PageEndpoint("GET", "/share/{job}", share.share, None, query=Parts, shared=True),
    PageEndpoint("GET", "/embed/{job}", share.embed, None, query=Parts, shared=True),
    PageEndpoint("GET", "/badge/{job}.svg", share.badge, None, shared=True),
    PageEndpoint("POST", "/jobs/{job}/share", share.make, None, body=share.Share, scope="admin"),
    PageEndpoint("GET", "/tokens", tokens.tokens, None, query=Page, scope="admin"),
    PageEndpoint("POST", "/tokens", tokens.create, None, body=NewToken, scope="admin"),
    PageEndpoint("POST", "/tokens/{token}/revoke", tokens.revoke, None, scope="admin"),
    _post("/queues/{queue}/put-back", queues.put_back, body=PutBack, for_all_tenants=True),
    _post("/jobs/{job}/items/{item}/retry", item.retry),
    _post("/jobs/actions", many.many, body=many.Many),
    _post("/jobs/{job}/limits", forms.limit, body=forms.SomeLimits),
    PageEndpoint("POST", "/jobs/{job}/recount", forms.recount, None),
    PageEndpoint("POST", "/jobs/{job}/run-again", forms.run_again, None, body=submissions.RunAgain, scope="submit"),
    PageEndpoint("POST", "/jobs/{job}/seal", form(submissions.seal), None, scope="submit"),
    _post("/jobs/{job}/pause", form(actions.pause)),
    _post("/jobs/{job}/resume", form(actions.resume)),
    _post("/jobs/{job}/cancel", form(actions.cancel), body=actions.Cancel),
    _post("/jobs/{job}/retry", form(actions.retry), body=actions.Retry),
    _post("/jobs/{job}/delete", forms.delete, body=forms.Delete),
]
