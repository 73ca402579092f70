"""The OpenAPI document is true: whatever fits it, or does not, gets an answer that it describes, and never a 500."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis.specs.openapi.schemas  # else each process of pytest-xdist takes 0.2 s for it
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.applications import Starlette
from starlette.requests import Request

from callboard import Identity
from callboard.sql.pool import connect
from callboard.sql.states import SCOPES
from callboard.web import create_app
from callboard.web.endpoint import Endpoint
from callboard.web.endpoints import ENDPOINTS
from tests.support.jobs import make_job, make_mixed_job
from tests.support.webapp import get

LOGIN = {"Authorization": "Bearer cb_right"}
#: What the document can't say: rules of values, as of a limit's text.
UNTRUE = [positive_data_acceptance]


@pytest.fixture
def app(database_url: str) -> Starlette:
    """The app, to which one token is a login."""

    def authenticate(request: Request) -> Identity | None:
        known = request.headers.get("authorization") == LOGIN["Authorization"]
        return Identity("anna", scopes=SCOPES) if known else None

    return create_app(url=database_url, authenticate=authenticate)


@pytest.fixture
def job(database_url: str) -> Iterator[int]:
    """A job with items in every state."""
    with connect(database_url) as conn:
        make_job(conn, 3, tenant="other")
        yield make_mixed_job(conn)


# Said of strategies while another thread takes a random number: the pool's, between two tries to connect.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda one: f"{one.method} {one.path}")
def test_every_answer_is_one_that_the_document_describes(endpoint: Endpoint, app: Starlette, job: int) -> None:
    api = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=LOGIN)

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(of_a_job=st.booleans(), case=api[endpoint.path][endpoint.method].as_strategy())
    def answers(of_a_job: bool, case: Any) -> None:
        if "job" in case.path_parameters and of_a_job:
            case.path_parameters["job"] = job
        case.call_and_validate(headers=LOGIN, excluded_checks=UNTRUE)

    answers()


def test_the_document_has_every_endpoint(app: Starlette) -> None:
    (answer,) = get(app, "/api/openapi.json", headers=LOGIN)
    paths = answer.json()["paths"]
    assert {(one.method.lower(), one.path) for one in ENDPOINTS} == {
        (method, path) for path, methods in paths.items() for method in methods
    }
    operations = [one for methods in paths.values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    assert all(one["summary"] for one in operations)


def test_each_array_of_the_document_says_what_it_has(app: Starlette) -> None:
    """Generators of clients leave out a type with an array of whose entries nothing is said, and what it is used in."""
    (answer,) = get(app, "/api/openapi.json", headers=LOGIN)
    arrays = [one for one in _objects(answer.json()) if one.get("type") == "array"]
    assert arrays
    assert [one for one in arrays if "items" not in one] == []


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(one)


def test_the_page_of_the_api_shows_every_endpoint_and_leads_to_every_type(app: Starlette) -> None:
    (page,) = get(app, "/docs", headers=LOGIN)
    assert page.status_code == 200
    assert "<code>read</code>" in page.text
    assert "&lt;code&gt;" not in page.text
    (document,) = get(app, "/api/openapi.json", headers=LOGIN)
    for methods in document.json()["paths"].values():
        assert all(f'id="{one["operationId"]}"' in page.text for one in methods.values())
    targets = set(re.findall(r'href="#(\w+)"', page.text))
    assert targets
    assert all(f'id="{name}"' in page.text for name in targets - {"main"})
