"""The table of settings is complete, refuses nonsense, and is the only reader of the environment."""

import re

import pytest

from callboard.sql import settings
from tests.support.paths import ROOT

SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for top in ("callboard", "middleware", "sql", "web", "actors")
    for path in (ROOT / top).rglob("*.py")
}
#: Modules that make the environment of a child process or of this one.
MAKERS = {
    "actors/remote.py",
    "callboard/commands/actor_modules.py",
    "callboard/commands/local/pipelines.py",
    "callboard/commands/local/processes.py",
    "callboard/commands/local/stack.py",
    "callboard/commands/services/postgres_data.py",
    "callboard/testing.py",
    "callboard/commands/services/rabbitmq_files.py",
    "middleware/journal/metrics.py",
}


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in settings.SETTINGS:
        monkeypatch.delenv(setting.name, raising=False)


def test_every_variable_that_the_code_names_is_in_the_table() -> None:
    named = {name for text in SOURCES.values() for name in re.findall(r"\bCALLBOARD_[A-Z_]*[A-Z]\b", text)}
    assert named == {s.name for s in settings.SETTINGS if s.name.startswith(settings.PREFIX)}


def test_the_table_alone_reads_the_environment() -> None:
    readers = {name for name, text in SOURCES.items() if re.search(r"\benviron\b|\bgetenv\b", text)}
    assert readers - MAKERS == {"sql/settings.py"}


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.name)
def test_an_empty_variable_is_an_unset_one(setting: settings.Setting[object], monkeypatch: pytest.MonkeyPatch) -> None:
    unset = setting.get()
    monkeypatch.setenv(setting.name, "")
    assert (setting.get(), setting.text) == (unset, None)


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [
        (settings.RESULT_LIMIT, "", 262_144),
        (settings.RESULT_LIMIT, " 400000 ", 400_000),
        (settings.HUNG_AFTER, "", 60.0),
        (settings.HUNG_AFTER, "0.1", 0.1),
        (settings.KEEP, "", 30 * 86_400.0),
        (settings.KEEP, "2h", 7200.0),
        (settings.KEEP, "forever", None),
        (settings.QUEUE_DEPTH, "", None),
        (settings.QUEUE_DEPTH, "100000000", 100_000_000),
        (settings.PREPARE, "", True),
        (settings.PREPARE, "OFF", False),
        (settings.WEBHOOK_PRIVATE, "", False),
        (settings.WEBHOOK_PRIVATE, "on", True),
        (settings.WEBHOOK_SECRET, "", b""),
        (settings.WEBHOOK_SECRET, "whsec_AAECAw==", b"\0\1\2\3"),
        (settings.WEBHOOK_SECRET, "whsec_AAECAw", b"\0\1\2\3"),
        (settings.WEBHOOK_SECRET, "AAECAw==", b"AAECAw=="),
        (settings.WEBHOOK_SECRET, "müller", "müller".encode()),
        (settings.RELEASE, "2026.11", "2026.11"),
        (settings.DATABASE_URL, "host=db user=anna", "host=db user=anna"),
        (settings.AMQP_URL, " amqp://one; amqps://anna@two:5671/v\n", "amqp://one;amqps://anna@two:5671/v"),
    ],
)
def test_a_value_has_its_type(
    setting: settings.Setting[object], text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting.name, text)
    assert setting.get() == value


NONSENSE = [
    *[(settings.RESULT_LIMIT, text, "bytes from 1 to 268435456") for text in ("abc", "0", "-1", "1.5", "9" * 30)],
    *[(settings.HUNG_AFTER, text, "seconds above 0") for text in ("60s", "0", "-5", "nan", "inf", "soon")],
    *[(settings.KEEP, text, "a span like 90s, 5m, 2h, 30d, or forever") for text in ("a month", "30", "0d")],
    *[(settings.QUEUE_DEPTH, text, "messages from 1 to") for text in ("many", "0", "-5", "1.5")],
    *[(settings.PREPARE, text, "on or off") for text in ("no", "1", "false")],
    (settings.WEBHOOK_PRIVATE, "yes", "on or off"),
    (settings.RABBITMQ_API, "http://rabbit:port", "an address like http://host:15672"),
]


@pytest.mark.parametrize(("setting", "text", "allowed"), NONSENSE)
def test_nonsense_is_refused_with_the_name_the_value_and_what_is_allowed(
    setting: settings.Setting[object], text: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting.name, text)
    with pytest.raises(settings.NotConfigured) as refused:
        settings.check()
    line = str(refused.value)
    assert all(part in line for part in (setting.name, repr(text), allowed))
    assert "\n" not in line


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (settings.DATABASE_URL, "anna:hunter2@"),
        (settings.AMQP_URL, "http://anna:hunter2@somewhere/"),
        (settings.AMQP_URL, "amqp://anna:hunter2@one:port/"),
        (settings.AMQP_URL, "amqp://anna:hunter2@one;two"),
        (settings.WEBHOOK_SECRET, "hunter2\udcff"),
        (settings.WEBHOOK_SECRET, "whsec_hunter2!"),
        (settings.WEBHOOK_SECRET, "whsec_hunter2\udcff"),
        (settings.WEBHOOK_SECRET, "whsec_"),
        (settings.RELEASE, "hunter2\udcff"),
    ],
)
def test_a_secret_is_refused_without_its_text(
    setting: settings.Setting[object], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(setting.name, text)
    with pytest.raises(settings.NotConfigured, match=setting.name) as refused:
        setting.get()
    assert "hunter2" not in str(refused.value)


def test_an_address_that_is_not_used_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "mysql+mysqldb://shop")
    settings.check()
