"""An actor that measures Python sources; `callboard demo` runs it over the standard library."""

import ast
import io
import re
import stat
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dramatiq

import callboard

#: The file extensions of Python sources.
SUFFIXES = (".py", ".pyi", ".pyw")
#: The largest source that is measured. A syntax tree needs about a hundred times the memory of its source.
LARGEST_BYTES = 8 * 1024 * 1024

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

# Matches a comment or a string, ten times as fast as the tokenizer, which matters for thousands of files.
STRING = re.compile(r"""#[^\n]*|(\"{3}|'{3})(?:\\.|.)*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)

# Hides the compiler's warnings about the parsed sources from a worker's log.
UNNAMED = "callboard-measures"
warnings.filterwarnings("ignore", module=UNNAMED)


@dramatiq.actor(queue_name="callboard", max_retries=0)
def measure_source(path: str) -> dict[str, Any]:
    """Measure one Python source: see `measure` for the result.

    A file that is no Python source, or too large, is skipped. A source that can't be parsed fails with SyntaxError or
    UnicodeDecodeError. A missing file fails with FileNotFoundError: a wrong path must not look like finished work.
    """
    return measure(read(Path(path)), Path(path).name)


def read(path: Path) -> bytes:
    """Return the bytes of a source. Raises Skip for a file that is no source or too large, and OSError for one that
    can't be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise callboard.Skip(f"not a Python source: its name ends in none of {', '.join(SUFFIXES)}")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise callboard.Skip("not a file")
    if found.st_size > LARGEST_BYTES:
        raise callboard.Skip(f"{found.st_size:,} bytes, and {LARGEST_BYTES:,} are measured at most")
    return path.read_bytes()


def measure(source: bytes, name: str) -> dict[str, Any]:
    """Return counts of a source: `bytes`; `lines` = `code` + `comments` + `blank`; `functions` and `classes`.

    Raises SyntaxError (with `name` as the file), or UnicodeDecodeError.
    """
    text = decode(source, name)
    nodes = list(ast.walk(parse(text, name)))
    functions = sum(isinstance(node, FUNCTIONS) for node in nodes)
    classes = sum(isinstance(node, ast.ClassDef) for node in nodes)
    return {"bytes": len(source), **lines(text), "functions": functions, "classes": classes}


def decode(source: bytes, name: str) -> str:
    """Return the text of a source, decoded with the encoding that it declares. Raises SyntaxError or
    UnicodeDecodeError.
    """
    if b"\0" in source:
        raise SyntaxError("null bytes: binary data, or UTF-16", (name, 1, 0, None))
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return io.TextIOWrapper(io.BytesIO(source), encoding).read()


def parse(text: str, name: str) -> ast.Module:
    """Return the syntax tree. Raises SyntaxError with `name` as the file."""
    try:
        return ast.parse(text, UNNAMED)
    except SyntaxError as error:
        error.filename = name
        raise


def lines(text: str) -> dict[str, int]:
    """Return the number of lines of each kind. A line inside a multi-line string is code, even if it is blank."""
    stripped = [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []
    for line in inside_strings(text):
        stripped[line] = "code"
    blank = stripped.count("")
    comments = sum(line.startswith("#") for line in stripped)
    return {"lines": len(stripped), "code": len(stripped) - comments - blank, "comments": comments, "blank": blank}


def inside_strings(text: str) -> Iterator[int]:
    """Yield the numbers, from 0, of the lines with a part of a multi-line string."""
    line = at = 0
    for found in STRING.finditer(text):
        spans = found[0].count("\n")
        if spans:
            line += text.count("\n", at, found.start())
            yield from range(line, line + spans + 1)
            line += spans
            at = found.end()
