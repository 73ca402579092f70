"""Actions on a job and their options have the same names in Python, on the command line and over HTTP."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import typer.main

import callboard
from callboard.commands.main import app
from callboard.sql.limits import Limits
from callboard.sql.writes.retry_action import RetrySelection
from callboard.sql.writes.run_again import Again
from callboard.web.actions import Cancel, Retry
from callboard.web.endpoints import ENDPOINTS
from callboard.web.new_job import NewJob, NewStage
from callboard.web.parameters import DryRun
from callboard.web.submissions import RunAgain

ACTIONS = {"cancel", "pause", "resume", "seal", "retry", "limit"}
LIMITS = {field.name for field in dataclasses.fields(Limits)}
#: Options that only commands have.
OF_COMMANDS = {"file", "form", "encoding", "delimiter", "skip_bad", "wait", "as_json", "job"}


def options(command: str) -> set[str]:
    """The names of a command's options."""
    group: Any = typer.main.get_command(app)
    return {str(parameter.name) for parameter in group.commands[command].params} - OF_COMMANDS


def parameters(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def test_limits_have_the_same_names_everywhere() -> None:
    assert options("limit") == LIMITS
    # `Job.limit` and PATCH accept any limit's name; their error for an unknown one lists all of them.
    assert LIMITS - {"at"} <= parameters(callboard.submit)


def test_a_submission_has_the_same_options_in_python_and_on_the_command_line() -> None:
    assert parameters(callboard.submit) - {"items", "created_by"} == options("submit")


def test_options_of_retry_and_cancel_have_the_same_names_everywhere() -> None:
    choice = {field.name for field in dataclasses.fields(RetrySelection)}
    assert choice == {field.name for field in msgspec.structs.fields(Retry)}
    assert parameters(callboard.Job.retry) == choice | {"dry_run"}
    # An option is repeated, and so in the singular.
    assert options("retry") == {"state", "item", "error", "dry_run"}
    assert parameters(callboard.Job.cancel) == options("cancel") == {"reason", "dry_run"}
    assert {one.path for one in ENDPOINTS if one.query is DryRun} == {
        "/jobs/{job}", "/jobs/{job}/cancel", "/jobs/{job}/retry",
    }  # fmt: skip
    assert [field.name for field in msgspec.structs.fields(Cancel)] == ["reason"]


def test_every_action_exists_in_python_as_a_command_and_over_http() -> None:
    group: Any = typer.main.get_command(app)
    assert set(group.commands) >= ACTIONS
    paths = {(one.method, one.path) for one in ENDPOINTS}
    said = {("POST", f"/jobs/{{job}}/{action}") for action in ACTIONS - {"limit"}}
    assert said | {("PATCH", "/jobs/{job}"), ("DELETE", "/jobs/{job}")} <= paths
    for action in (*ACTIONS, "delete"):
        assert callable(getattr(callboard.Job, action))
        assert inspect.iscoroutinefunction(getattr(callboard.Job, f"a{action}"))


def test_what_runs_again_has_the_same_options_everywhere() -> None:
    fields = {field.name for field in dataclasses.fields(Again)} - {"limits"}
    assert parameters(callboard.Job.run_again) - {"limits"} == fields
    assert options("run-again") - {"state"} | {"states"} == fields  # its limits are changed by `limit`
    assert {field.name for field in msgspec.structs.fields(RunAgain)} == fields | LIMITS
    assert ("POST", "/jobs/{job}/run-again") in {(one.method, one.path) for one in ENDPOINTS}
    assert inspect.iscoroutinefunction(callboard.Job.arun_again)


def test_a_submission_over_http_has_the_options_of_submit() -> None:
    of_http = {"open", "skip_bad", "stages"}
    assert {field.name for field in msgspec.structs.fields(NewStage)} == parameters(callboard.Stage)
    assert {field.name for field in msgspec.structs.fields(NewJob)} - of_http == parameters(callboard.submit) - {
        "created_by"
    }


def test_each_command_that_takes_a_job_takes_the_newest_one() -> None:
    group: Any = typer.main.get_command(app)
    jobs = {
        name: parameter.help
        for name, command in group.commands.items()
        for parameter in command.params
        if str(parameter.metavar).startswith("JOB")
    }
    assert {"status", "verify", "purge"} <= jobs.keys()
    assert [name for name, said in jobs.items() if "@latest" not in said] == []
