"""A pipeline is a small file to copy, which imports nothing of Callboard but its face."""

import ast
import sys

import pytest

from callboard.commands.local.pipelines import PIPELINES, Pipeline
from tests.support.paths import ROOT


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_a_pipeline_is_what_one_wants_to_copy(pipeline: Pipeline) -> None:
    """Its `submit` takes what `callboard demo` gives it."""
    text = (ROOT / "actors" / f"{pipeline.module}.py").read_text(encoding="utf-8")
    assert 20 <= text.count("\n") <= 100
    tree = ast.parse(text)
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    parts = {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    face = {"callboard", "callboard.actors.remote", "dramatiq", "collections.abc"}
    assert plain | parts <= sys.stdlib_module_names | face
    (submit,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "submit")
    assert [argument.arg for argument in submit.args.args] == list(pipeline.given)
