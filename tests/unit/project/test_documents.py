"""The README and the guides match the code: commands, options, routes, settings, files, states, names, numbers."""

import ast
import inspect
import re
import subprocess
from dataclasses import fields
from typing import Any

import pytest
import typer
from typer.main import get_command

import callboard
from callboard.commands.main import app
from callboard.middleware.callbacks import dispatcher, webhook
from callboard.middleware.journal import journal, running_rows
from callboard.middleware.process import process
from callboard.middleware.rabbitmq import prefetch
from callboard.middleware.submission import item_encoding
from callboard.sql import settings, states, timings
from callboard.sql.limits import Limits
from callboard.sql.writes import callbacks as calls
from callboard.sql.writes import retention as deletion
from callboard.web import database
from callboard.web.endpoints import ENDPOINTS
from tests.support import documents
from tests.support.paths import ROOT

WAITING = {"pending", "queued", "running"}  # as `MOVES` has them: one stored state


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """The commands below a group, by their names, as `token create`."""
    found: dict[str, Any] = {}
    for name, one in group.commands.items():
        found |= commands(one, f"{name} ") if hasattr(one, "commands") else {f"{prefix}{name}": one}
    return found


COMMANDS = commands(get_command(app))
GROUPS = {name.split()[0] for name in COMMANDS if " " in name}


def named(line: str) -> str:
    """The name of the command that a line begins with."""
    words = line.split()[1:]
    return " ".join(words[:2] if words[0] in GROUPS else words[:1])


def options(name: str) -> set[str]:
    return {"--help"} | {option for parameter in COMMANDS[name].params for option in parameter.opts}


def moves() -> set[tuple[str, str]]:
    """The arrows of the diagram of an item's states."""
    return set(re.findall(r"(\w+|\[\*\]) --> (\w+)", documents.block("mermaid", "skipped")))


def test_the_diagram_and_the_table_of_items_have_the_states_of_items() -> None:
    assert {state for arrow in moves() for state in arrow} - {"[*]"} == set(states.ITEM_STATES)
    assert {to for start, to in moves() if start == "[*]"} == {"pending"}
    assert documents.first_column("item") == list(states.ITEM_STATES)


def test_the_moves_in_the_diagram_are_those_that_the_record_makes() -> None:
    """`waiting` is stored for pending, queued and running; `cancelled` is said of what a stopped job left."""
    stored: dict[str, set[str]] = {state: set() for state in states.MOVES}
    for start, to in moves():
        before, after = ("waiting" if state in WAITING else state for state in (start, to))
        if start != "[*]" and to != "cancelled" and before != after:
            stored[before].add(after)
    assert stored["waiting"] == set(states.MOVES["waiting"])
    # An outcome may overtake the note that its retry is published; nobody sees that.
    assert stored["retrying"] == set(states.MOVES["retrying"]) - set(states.MOVES["waiting"])
    assert all(not stored[state] for state in states.FINAL)
    assert {start for start, to in moves() if to == "cancelled"} == {*WAITING, "retrying"}


def test_the_states_of_jobs_are_all_there() -> None:
    assert documents.first_column("job") == list(states.JOB_STATES)
    sentence = documents.TEXT.partition("A job goes from")[2].partition("\n")[0]
    assert re.findall(r"`(\w+)`", sentence) == list(states.JOB_STATES)


def test_every_command_is_named_and_every_named_one_exists() -> None:
    listed = [named(line) for line in documents.first_column("command")]
    assert sorted(listed) == sorted(COMMANDS)
    assert {named(line) for line in documents.commands()} >= {*COMMANDS}


@pytest.mark.parametrize("line", documents.commands())
def test_a_command_and_its_options_exist(line: str) -> None:
    name = named(line)
    if name.startswith("--"):
        assert name in ("--help", "--install-completion", "--version")
        return
    assert set(re.findall(r"(?<!\w)--[\w-]+", line)) <= options(name)


def test_an_argument_in_the_table_is_one_of_the_command() -> None:
    for line in documents.first_column("command"):
        name = named(line)
        arguments = line.removeprefix(f"callboard {name}").split()
        has = [p for p in COMMANDS[name].params if isinstance(p, typer.core.TyperArgument)]
        assert len(arguments) == len(has), line


def test_options_named_alone_are_of_some_command() -> None:
    known = {option for name in COMMANDS for option in options(name)}
    alone = set(re.findall(r"`(--[\w-]+)", documents.TEXT))
    assert alone <= known


def test_the_api_is_listed() -> None:
    def served(method: str) -> set[str]:
        return {f"/api{one.path}" for one in ENDPOINTS if one.method == method}

    assert set(re.findall(r"`PATCH ([^`]+)`", documents.TEXT)) == served("PATCH")
    assert set(re.findall(r"`DELETE ([^`]+)`", documents.TEXT)) == served("DELETE")
    others = {"/healthz", "/readyz", "/metrics", "/api/openapi.json"}
    assert {path for path in documents.first_column("GET") if path.startswith("/")} == served("GET") | others
    assert set(documents.first_column("POST")) == served("POST")


def test_the_table_of_settings_is_that_of_config() -> None:
    rows = [tuple(re.sub(r"`|\[|\]\([^)]*\)", "", cell) for cell in row) for row in documents.table("setting")]
    assert rows == [(one.name, one.default, one.meaning.replace("`", "")) for one in settings.SETTINGS]


def test_every_option_of_submit_is_explained() -> None:
    names = [*inspect.signature(callboard.submit).parameters]
    assert sorted(documents.first_column("option")) == sorted(names)
    changeable = {name for name, mark in documents.table("option") if mark.startswith("✎")}
    assert {name.strip("`") for name in changeable} == {field.name for field in fields(Limits)}


def test_every_fault_names_its_test_and_every_test_of_faults_is_named() -> None:
    text = documents.PAGES["docs/what-survives-what.md"]
    rows = [row for row in text.splitlines() if row.startswith("| ") and "what happens" not in row]
    assert [row for row in rows if "](../tests/" not in row] == []
    tests = {path.name for path in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert {name for name in tests if f"/faults/{name})" not in text} == set()


def test_settings_are_those_of_config() -> None:
    known = {setting.name for setting in settings.SETTINGS}
    named = set(re.findall(r"\b(?:CALLBOARD_\w+|DATABASE_URL|AMQP_URL)\b", documents.TEXT))
    assert named <= known | {"CALLBOARD_TEST_LONG"}


def test_the_days_that_a_job_stays_are_the_default() -> None:
    assert f"deleted {settings.KEEP.default.removesuffix('d')} days after its end" in documents.TEXT


def test_numbers_are_those_of_the_code() -> None:
    said = " ".join(documents.TEXT.split())
    assert f"at most {process.CONNECTIONS} database connections" in said
    assert f"at most {database.CONNECTIONS} database connections" in said
    assert f"about {journal.FLUSH_SECONDS * 1000:.0f} ms" in said
    assert f"up to {prefetch.MAX_PREFETCH} for fast ones" in said
    assert f"chunks of {deletion.CHUNK_ITEMS:,} items" in said
    assert f"arguments of an item: {item_encoding.ITEM_LIMIT_BYTES // 2**20} MiB" in said
    assert f"result: {int(settings.RESULT_LIMIT.default) // 2**10} KiB" in said
    assert f"has run for {timings.DEADLY_SECONDS:.0f} s" in said
    assert running_rows.SLOW_SECONDS == 0.25
    assert "a quarter of a second" in said
    assert len(list((ROOT / "actors" / "broken").iterdir())) == 5
    assert "Five files are ours" in said
    assert f"2xx answer within {webhook.TOTAL_SECONDS:.0f} s" in said
    assert f"after {dispatcher.FIRST_PAUSE_SECONDS:.0f} s, doubling to an hour, {calls.MAX_TRIES} times" in said
    assert dispatcher.LONGEST_PAUSE_SECONDS == 3_600
    assert f"Up to {webhook.REDIRECTS} redirects" in said
    assert f"takes {dispatcher.WEBHOOKS_PER_HOST} of the {dispatcher.WEBHOOKS_AT_ONCE} deliveries" in said
    assert timings.MAX_CRASHES == 3
    assert "three workers died" in said


@pytest.mark.parametrize(("page", "target"), documents.links())
def test_a_link_leads_to_a_file_or_a_heading(page: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = ((ROOT / page).parent / path if path else ROOT / page).resolve()
    assert found.exists()
    if anchor:
        assert anchor in documents.anchors(str(found.relative_to(ROOT.resolve())))


@pytest.mark.parametrize("text", documents.blocks("python"))
def test_python_compiles_and_uses_public_names(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(id="callboard"), attr=name):
                assert name in callboard.__all__


def test_names_in_the_prose_are_public() -> None:
    modules = {"sql", "web", "actors", "middleware", "testing"}
    named = set(re.findall(r"`(?:await )?callboard\.(\w+)", documents.TEXT)) - modules
    assert named <= set(callboard.__all__)


@pytest.mark.parametrize("text", documents.blocks("sh"))
def test_shell_parses_and_make_has_its_targets(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
