"""An actor that measures Python sources; `callboard demo` runs it over the standard library."""

import ast
import io
import re
import stat
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import dramatiq

import callboard

#: The endings of a Python source's name.
SUFFIXES = (".py", ".pyi", ".pyw")
#: The largest source that is measured; a syntax tree takes about a hundred times its source.
LARGEST_BYTES = 8 * 1024 * 1024

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
LOOPS = (ast.For, ast.AsyncFor, ast.While)
BLOCKS = (*DEFINITIONS, *LOOPS, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
BRANCHES = (*LOOPS, ast.If, ast.IfExp, ast.ExceptHandler, ast.BoolOp, ast.comprehension, ast.Match)
IMPORTS = (ast.Import, ast.ImportFrom)
# Most nodes of a tree, with nothing below them. Without them the walk is three times as fast.
LEAVES = {ast.Name, ast.Constant, ast.Load, ast.Store, ast.Del, ast.alias}

# A comment or a string. This is ten times as fast as the tokenizer, which matters for thousands of files.
STRING = re.compile(r"""#[^\n]*|(\"{3}|'{3})(?:\\.|.)*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'""", re.DOTALL)

# The compiler warns about the sources that it parses; those warnings do not belong into a worker's log.
UNNAMED = "callboard-measures"
warnings.filterwarnings("ignore", module=UNNAMED)


@dramatiq.actor(queue_name="callboard", max_retries=0)
def measure_source(path: str) -> dict[str, Any]:
    """Measure one Python source: see `measure` for the result.

    A file with another name, or one that is too large, is skipped. A source that can't be parsed fails with SyntaxError
    or UnicodeDecodeError, and a missing file with FileNotFoundError: a wrong path must not look like work done.
    """
    return measure(read(Path(path)), Path(path).name)


def read(path: Path) -> bytes:
    """The bytes of a source. Raises Skip for a file that is none, and OSError for one that can't be read."""
    if path.suffix.lower() not in SUFFIXES:
        raise callboard.Skip(f"not a Python source: its name ends in none of {', '.join(SUFFIXES)}")
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise callboard.Skip("not a file")
    if found.st_size > LARGEST_BYTES:
        raise callboard.Skip(f"{found.st_size:,} bytes, and {LARGEST_BYTES:,} are measured at most")
    return path.read_bytes()


def measure(source: bytes, name: str) -> dict[str, Any]:
    """Figures of a source: `lines` = `code` + `comments` + `blank`; `functions`, `classes`, `depth` of nested blocks;
    cyclomatic `complexity` of all and of the `highest` function; the modules it `imports`.

    Raises SyntaxError (with `name` as the file), or UnicodeDecodeError.
    """
    text = decode(source, name)
    code = Structure().walk(parse(text, name))
    return {"bytes": len(source), **lines(text), **code.figures()}


def decode(source: bytes, name: str) -> str:
    """The text, by the encoding that the source itself declares."""
    if b"\0" in source:
        raise SyntaxError("null bytes: binary data, or UTF-16", (name, 1, 0, None))
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return io.TextIOWrapper(io.BytesIO(source), encoding).read()


def parse(text: str, name: str) -> ast.Module:
    """The syntax tree."""
    try:
        return ast.parse(text, UNNAMED)
    except SyntaxError as error:
        error.filename = name
        raise


def lines(text: str) -> dict[str, int]:
    """The number of lines of each kind. A line inside a long string is code, also when it looks blank."""
    stripped = [line.strip() for line in text.removesuffix("\n").split("\n")] if text else []
    for line in inside_strings(text):
        stripped[line] = "code"
    blank = stripped.count("")
    comments = sum(line.startswith("#") for line in stripped)
    return {"lines": len(stripped), "code": len(stripped) - comments - blank, "comments": comments, "blank": blank}


def inside_strings(text: str) -> Iterator[int]:
    """The numbers, from 0, of the lines that hold a part of a string of several lines."""
    line = at = 0
    for found in STRING.finditer(text):
        spans = found[0].count("\n")
        if spans:
            line += text.count("\n", at, found.start())
            yield from range(line, line + spans + 1)
            line += spans
            at = found.end()


@dataclass(slots=True)
class Structure:
    """The structure of a syntax tree. A function's complexity is 1 plus its decisions, without those of inner ones;
    decisions outside any function count for the module.
    """

    classes: int = 0
    depth: int = 0
    imports: set[str] = field(default_factory=set)
    functions: dict[str, int] = field(default_factory=dict)  # complexity by "qualified.name:line"
    outside: int = 1

    def walk(self, tree: ast.Module) -> Self:
        """Count a whole tree. Not recursive: sources may nest deeper than Python's stack."""
        todo: list[tuple[ast.AST, Place]] = [(tree, Place())]
        while todo:
            node, place = todo.pop()
            if isinstance(node, BLOCKS):
                place = self._enter(node, place)
            elif isinstance(node, IMPORTS):
                self.imports.update(imported(node))
            if isinstance(node, BRANCHES):
                self._decide(decisions(node), place)
            children = [child for child in ast.iter_child_nodes(node) if type(child) not in LEAVES]
            if isinstance(node, ast.If) and is_chained(node):
                # An `elif` is an `if` in an `else`, and as deep as the `if` that it belongs to.
                todo.append((children.pop(), place._replace(depth=place.depth - 1)))
            todo += [(child, place) for child in children]
        return self

    def _enter(self, node: ast.AST, place: "Place") -> "Place":
        self.classes += isinstance(node, ast.ClassDef)
        within = place.within(node)
        self.depth = max(self.depth, within.depth)
        if isinstance(node, FUNCTIONS) and within.function:
            self.functions.setdefault(within.function, 1)
        return within

    def _decide(self, count: int, place: "Place") -> None:
        if place.function is None:
            self.outside += count
        else:
            self.functions[place.function] += count

    def figures(self) -> dict[str, Any]:
        """The figures, under the names of `measure`."""
        highest = max(self.functions, key=self.functions.__getitem__, default=None)
        return {
            "functions": len(self.functions),
            "classes": self.classes,
            "depth": self.depth,
            "complexity": self.outside + sum(self.functions.values()),
            "highest": highest and {"function": highest, "complexity": self.functions[highest]},
            "imports": sorted(self.imports),
        }


class Place(NamedTuple):
    """A node's place: the names around it, the function that it belongs to, and how many blocks deep it is."""

    name: str = ""
    function: str | None = None
    depth: int = 0

    def within(self, block: ast.AST) -> "Place":
        """The place of the nodes inside a block that is here."""
        if not isinstance(block, DEFINITIONS):
            return self._replace(depth=self.depth + 1)
        name = f"{self.name}.{block.name}".lstrip(".")
        function = f"{name}:{block.lineno}" if isinstance(block, FUNCTIONS) else self.function
        return Place(name, function, self.depth + 1)


def is_chained(node: ast.If) -> bool:
    """Whether an `elif` follows: it is the last of the node's children."""
    match node.orelse:
        case [ast.If(col_offset=column)]:
            return column == node.col_offset
    return False


def decisions(node: ast.AST) -> int:
    """The number of ways through its function that a node adds."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return len(node.cases) if isinstance(node, ast.Match) else 1


def imported(node: ast.AST) -> Iterator[str]:
    """The modules that a node imports; the name of a relative one begins with its dots."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "." * node.level + (node.module or "")
