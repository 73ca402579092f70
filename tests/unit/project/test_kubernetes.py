"""The example for Kubernetes has the form that Kubernetes and KEDA accept, and fits Callboard."""

import json
import re
from typing import Any

import jsonschema_rs
import pytest
import yaml

from callboard.middleware.process.process import STOP_SECONDS
from callboard.sql import settings
from callboard.sql.states import ITEM_STATES
from callboard.web.app import ROUTES
from callboard.web.metrics import FACTS, DatabaseMetrics
from tests.support import documents
from tests.support.paths import ROOT

#: The schemas of Kubernetes 1.32 and KEDA 2.16 by kind, without what is inside of fields that the example does not use.
SCHEMAS = json.loads((ROOT / "tests" / "support" / "kubernetes.json").read_text(encoding="ascii"))
[TEXT] = documents.blocks("yaml", "docs/kubernetes.md")
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(TEXT))
#: Seconds that a worker takes to end once its items have: to write, and to close the pool (see `test_shutdown`).
ENDING_SECONDS = STOP_SECONDS + 6


def named(kind: str, name: str) -> dict[str, Any]:
    [found] = [one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def pod(kind: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The template's spec, and its one container."""
    spec = named(kind, name)["spec"]["template"]["spec"]
    [container] = spec["containers"]
    return spec, container


@pytest.mark.parametrize("found", OBJECTS, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_an_object_fits_its_schema(found: dict[str, Any]) -> None:
    jsonschema_rs.validate(SCHEMAS[found["kind"]], found)


@pytest.mark.parametrize(("right", "wrong"), [("readinessProbe", "readynessProbe"), ("replicas: 2", "replicas: two")])
def test_a_mistake_is_found(right: str, wrong: str) -> None:
    [found] = [one for one in yaml.safe_load_all(TEXT.replace(right, wrong)) if one not in OBJECTS]
    with pytest.raises(jsonschema_rs.ValidationError):
        test_an_object_fits_its_schema(found)


@pytest.mark.parametrize("name", ["callboard-web", "callboard-workers"])
def test_what_selects_pods_selects_those_of_the_deployment(name: str) -> None:
    labels = named("Deployment", name)["spec"]["template"]["metadata"]["labels"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert named(kind, name)["spec"]["selector"]["matchLabels"] == labels
    assert named("Service", "callboard-web")["spec"]["selector"] == {"app": "callboard-web"}
    assert named("ScaledObject", "callboard-workers")["spec"]["scaleTargetRef"] == {"name": "callboard-workers"}


def test_the_probes_ask_for_what_the_web_app_serves_without_a_login() -> None:
    _, web = pod("Deployment", "callboard-web")
    asked = {kind: web[f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness")}
    assert asked == {"readiness": "/readyz", "liveness": "/healthz"}
    assert {getattr(route, "path", None) for route in ROUTES} >= {*asked.values()}


def test_a_worker_has_the_time_to_end() -> None:
    spec, container = pod("Deployment", "callboard-workers")
    [option] = [word for word in container["command"] if word.startswith("--worker-shutdown-timeout=")]
    timeout = int(option.partition("=")[2])
    assert timeout / 1000 + ENDING_SECONDS < spec["terminationGracePeriodSeconds"]


def test_the_settings_are_ours() -> None:
    known = {setting.name for setting in settings.SETTINGS}
    assert named("Secret", "callboard")["stringData"].keys() <= known
    assert {one["name"] for one in pod("Deployment", "callboard-workers")[1]["env"]} <= known


def test_keda_asks_for_a_metric_that_the_web_app_has() -> None:
    [trigger] = named("ScaledObject", "callboard-workers")["spec"]["triggers"]
    query = trigger["metadata"]["query"]
    [(metric, labels)] = re.findall(r"(callboard_\w+){(.*?)}", query)
    row = dict.fromkeys((*ITEM_STATES, "retries", "crashes"), 1) | {"actor": "work", "queue": "default"}
    served = {one.name: one for one in DatabaseMetrics([row], {**dict.fromkeys(FACTS, 1.0), "jobs": {}}, 0).collect()}
    states = {sample.labels["state"] for sample in served[metric].samples}
    assert states >= {*re.findall(r"\w+", labels.partition("=~")[2])}
