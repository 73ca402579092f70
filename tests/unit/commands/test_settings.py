"""Settings on the command line: `config` shows no secret, and nonsense ends every command."""

import pytest

from callboard.commands import settings
from callboard.commands.main import main


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


def test_an_address_without_a_secret_is_shown_as_it_is() -> None:
    address = "postgresql:///shop?host=/run/postgresql"
    assert settings.masked(address) == address


def test_a_misspelt_setting_is_pointed_at_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLBOARD_PREPAIR", "hunter2")
    row = next(row for row in settings.described() if row["name"] == "CALLBOARD_PREPAIR")
    assert row["value"] == "***"
    assert "misspelt" in row["meaning"]


@pytest.mark.parametrize("command", ["jobs", "config", "sweep", "serve", "up", "submit"])
def test_nonsense_ends_every_command_with_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALLBOARD_HUNG_AFTER", "60s")
    assert main([command]) == 2
    done = capsys.readouterr()
    allowed = "a number of seconds above 0, without a unit, like 60; not '60s'"
    assert (done.out, done.err) == ("", f"callboard: CALLBOARD_HUNG_AFTER must be {allowed}\n")
