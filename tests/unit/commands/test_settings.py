"""The table of settings: it is complete, and it tells no secret."""

import re

import pytest

from callboard.commands import settings
from tests.support.paths import ROOT

SOURCES = [
    path
    for top in ("callboard/commands", "middleware", "sql", "web", "actors")
    for path in (ROOT / top).rglob("*.py")
]
TESTS_ONLY = "CALLBOARD_TEST_"


def test_every_variable_that_the_code_reads_is_in_the_table() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    used = {
        name for name in re.findall(r"\bCALLBOARD_[A-Z_]*[A-Z]\b", text) if not name.startswith(TESTS_ONLY)
    }
    assert used <= {setting.name for setting in settings.SETTINGS}


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://anna:hunter2@db/shop",
        "postgresql://anna:hun@ter2/x@db:5432/shop",
        "postgresql://db/shop?user=anna&password=hunter2",
        "host=db password='hun ter2' user=anna",
        "amqp://anna:hunter2@one;amqp://anna:hun;ter2@two:5672/v",
    ],
)
def test_no_password_is_shown(value: str) -> None:
    hidden = settings.masked(value)
    assert "hun" not in hidden
    assert "ter2" not in hidden
    assert "***" in hidden


def test_what_holds_no_secret_is_shown_as_it_is() -> None:
    assert (
        settings.masked("postgresql:///shop?host=/run/postgresql")
        == "postgresql:///shop?host=/run/postgresql"
    )


def test_a_misspelt_setting_is_pointed_at_without_its_value() -> None:
    rows = settings.described({"CALLBOARD_PREPAIR": "hunter2"})
    assert rows[-1]["name"] == "CALLBOARD_PREPAIR"
    assert rows[-1]["value"] == "***"
    assert "misspelt" in rows[-1]["meaning"]
