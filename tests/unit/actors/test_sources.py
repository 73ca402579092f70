"""The figures of a Python source are right; any other file is skipped or fails."""

import io
import os
import tokenize
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import dramatiq.broker
import pytest
from hypothesis import given
from hypothesis import strategies as st

import callboard
from tests.support.paths import ROOT

BROKEN = ROOT / "actors" / "broken"

#: Statements of every kind that `lines` must tell apart.
PIECES = (
    "x = 1  # one",
    "# a comment",
    "",
    "   ",
    "def f(a):\n    # inside\n\n    return a",
    '"""a string\n\n# of many lines\n"""',
    "y = '''\n'''  # after",
    "z = 'it\\'s # no comment'",
    "w = 'one \\\n# two'",
    'f"{x}"',
    "r'\\\\'",
    "call(\n    # between\n\n    1,\n)",
    "if x:\n    pass\nelif y:\n    pass",
    "text = (\n    'a'\n    # a comment between strings\n    'b'\n)",
)


@pytest.fixture(scope="module")
def sources() -> Iterator[Any]:
    """The module. Importing it makes a tracked broker the global one, which is undone afterwards."""
    kept = dramatiq.broker.global_broker
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/none")
        patch.delenv("AMQP_URL", raising=False)
        yield import_module("callboard.actors.sources")
    dramatiq.broker.global_broker = kept


def measured(sources: Any, text: str) -> dict[str, Any]:
    found: dict[str, Any] = sources.measure(text.encode(), "some.py")
    return found


def test_a_source_has_figures(sources: Any) -> None:
    assert measured(sources, "") == dict.fromkeys(
        ("bytes", "lines", "code", "comments", "blank", "functions", "classes"), 0
    )
    text = "class Shop:\n    def price(self):\n        def inner(): pass\n\nasync def main(): pass\n"
    figures = measured(sources, text)
    assert (figures["bytes"], figures["functions"], figures["classes"]) == (len(text), 3, 1)


@given(pieces=st.lists(st.sampled_from(PIECES)), newline=st.sampled_from(["\n", "\r\n"]), end=st.booleans())
def test_lines_are_counted_as_the_tokenizer_counts_them(
    sources: Any, pieces: list[str], newline: str, end: bool
) -> None:
    text = "\n".join(pieces) + "\n" * end
    found = sources.measure(text.replace("\n", newline).encode(), "some.py")
    assert {name: found[name] for name in ("lines", "code", "comments", "blank")} == counted(text)


def counted(text: str) -> dict[str, int]:
    """The same by Python's own tokenizer."""
    layout = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    kinds: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            kinds.setdefault(token.start[0], "comments")
        elif token.type not in layout:
            kinds.update(dict.fromkeys(range(token.start[0], token.end[0] + 1), "code"))
    total = text.count("\n") + (bool(text) and not text.endswith("\n"))
    found = Counter(kinds.values())
    rest = total - len(kinds)
    return {"lines": total, "code": found["code"], "comments": found["comments"], "blank": rest}


@given(source=st.binary() | st.text().map(str.encode))
def test_anything_is_measured_or_refused(sources: Any, source: bytes) -> None:
    try:
        figures = sources.measure(source, "some.py")
    except (SyntaxError, UnicodeDecodeError):
        return
    assert figures["lines"] == figures["code"] + figures["comments"] + figures["blank"]


def test_shipped_broken_sources_are_labelled_and_fail(sources: Any) -> None:
    errors = set()
    for source in BROKEN.glob("*.py.txt"):
        assert source.read_bytes().startswith(b"# Broken on purpose: ")
        with pytest.raises((SyntaxError, UnicodeDecodeError)) as caught:
            sources.measure(source.read_bytes(), source.name)
        errors.add(caught.type)
    assert errors == {SyntaxError, IndentationError, UnicodeDecodeError}


def test_the_declared_encoding_is_used(sources: Any) -> None:
    assert sources.measure("# coding: latin-1\ncafé = 1\n".encode("latin-1"), "some.py")["code"] == 1
    with pytest.raises(SyntaxError, match="unknown encoding"):
        sources.measure(b"# coding: nonsense\n", "some.py")


def test_binary_data_fails_and_names_the_file(sources: Any) -> None:
    with pytest.raises(SyntaxError, match=r"null bytes.*\(some.py, line 1\)"):
        sources.measure("x = 1".encode("utf-16"), "some.py")
    with pytest.raises(SyntaxError, match=r"\(some.py, line 1\)"):
        measured(sources, "x = = 1")


def test_a_file_that_is_no_python_source_is_skipped(sources: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.py").mkdir()
    os.mkfifo(tmp_path / "pipe.py")
    for name in ("notes.txt", "folder.py", "pipe.py"):
        with pytest.raises(callboard.Skip, match="not a"):
            sources.read(tmp_path / name)


def test_a_source_that_is_too_large_is_skipped(sources: Any, tmp_path: Path) -> None:
    source = tmp_path / "large.py"
    with source.open("wb") as file:
        file.truncate(sources.LARGEST_BYTES + 1)
    with pytest.raises(callboard.Skip, match="bytes, and"):
        sources.read(source)


def test_a_missing_source_fails(sources: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sources.read(tmp_path / "gone.py")


def test_actor_is_tried_once(sources: Any, tmp_path: Path) -> None:
    source = tmp_path / "some.py"
    source.write_text("x = 1\n")
    assert sources.measure_source.options["max_retries"] == 0
    assert sources.measure_source.fn(str(source))["code"] == 1


def test_module_that_cannot_be_imported_is_named(sources: Any) -> None:
    actors = import_module("callboard.actors")
    actors.load(" json,  os.path ")
    with pytest.raises(ImportError, match="CALLBOARD_ACTORS names 'no_such_module', which can't be imported"):
        actors.load("json,no_such_module")


def test_a_module_in_the_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actors = import_module("callboard.actors")
    (tmp_path / "letters.py").write_text("FOUND = True\n", encoding="utf-8")
    (tmp_path / "wrong.py").write_text("1 / 0\n", encoding="utf-8")
    (tmp_path / "broken").mkdir()
    assert actors.modules([str(tmp_path)]) == "callboard.actors.letters callboard.actors.wrong"
    monkeypatch.setattr(actors, "__path__", [str(tmp_path)])
    with pytest.raises(ImportError, match=r"the folder actors has 'callboard.actors.wrong', which can't be"):
        actors.load(actors.modules(actors.__path__), "the folder actors has")
    assert import_module("callboard.actors.letters").FOUND
