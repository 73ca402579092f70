"""compose.yaml starts every part in order, healthy, restarted, with nothing open and no default password."""

import re
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

# The keys of the Compose specification that this file uses.
KNOWN = {
    "build",
    "cap_drop",
    "command",
    "depends_on",
    "environment",
    "healthcheck",
    "hostname",
    "image",
    "init",
    "ports",
    "read_only",
    "restart",
    "security_opt",
    "shm_size",
    "stop_grace_period",
    "tmpfs",
    "volumes",
}


def test_every_service_is_there() -> None:
    assert SERVICES.keys() == {"postgres", "rabbitmq", "migrate", "workers", "web"}
    assert SERVICES["postgres"]["image"] == "postgres:18"
    assert re.fullmatch(r"rabbitmq:4(\.\d+)*-management", SERVICES["rabbitmq"]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_known_keys_alone(name: str) -> None:
    assert SERVICES[name].keys() <= KNOWN


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - {"migrate"}))
def test_a_service_is_restarted_and_has_a_health_check(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"
    assert SERVICES[name]["healthcheck"].keys() >= {"test", "interval", "timeout", "retries", "start_period"}


def test_a_service_waits_for_the_ones_it_needs() -> None:
    for service in SERVICES.values():
        for name, need in service.get("depends_on", {}).items():
            done = "service_completed_successfully" if name == "migrate" else "service_healthy"
            assert need == {"condition": done}
    assert SERVICES["migrate"]["restart"] == "no"
    assert all("migrate" in SERVICES[name]["depends_on"] for name in ("workers", "web"))


def test_ports_are_published_on_loopback_alone() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_password_has_a_default() -> None:
    passwords = re.findall(r"\$\{(\w*PASSWORD)([^}]*)\}", TEXT)
    assert {name for name, _ in passwords} == {"POSTGRES_PASSWORD", "RABBITMQ_PASSWORD"}
    assert all(rest.startswith(":?") for _, rest in passwords)


def test_workers_get_the_secret_that_they_sign_with() -> None:
    given = SERVICES["workers"]["environment"]
    assert given["CALLBOARD_WEBHOOK_SECRET"] == "${CALLBOARD_WEBHOOK_SECRET:-}"
    assert given.items() > SERVICES["migrate"]["environment"].items()


def test_data_is_in_named_volumes() -> None:
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    assert SERVICES["rabbitmq"]["volumes"] == ["rabbitmq:/var/lib/rabbitmq"]
    assert COMPOSE["volumes"].keys() == {"postgres", "rabbitmq"}


def test_image_runs_as_an_ordinary_user_from_the_hashed_lock() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    final = dockerfile.rpartition("\nFROM ")[2]
    assert re.search(r"^USER (?!root)\w+$", final, re.MULTILINE)
    assert "--require-hashes" in dockerfile
